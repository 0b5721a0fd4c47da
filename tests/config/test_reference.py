"""docs/settings.md agrees with the config."""

import yaml

from llkd.config.load import parse_config
from llkd.config.reference import EXAMPLE, page, sections
from tests.conftest import ROOT


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs/settings.md").read_text() == page(), "run `make docs`"


def test_every_setting_is_told_once_and_has_a_docstring() -> None:
    settings = [entry for _, _, own in sections() for entry in own]
    assert [key for key, field in settings if not field.description] == []
    keys = [key for key, _ in settings]
    assert len(keys) == len(set(keys))
    known = {
        "run_dir",
        "task.examples[].label",
        "test.path",
        "student.lora.rank",
        "selection.policy",
    }
    assert known <= set(keys)
    assert "teacher_number" not in keys  # not a setting
    assert all(about for _, about, _ in sections())


def test_types_are_told_in_words() -> None:
    lines = page().splitlines()
    for line in (
        "| `student.workers` | whole number ≥ 1 or [whole number ≥ 1, whole number ≥ 1] | `1` |",
        '| `student.keep` | `best`, `last` or `probe` | `"best"` |',
        "| `teacher.prior` | mapping of names to number > 0 or null | `null` |",
        "| `corpus.path` | text or list of text | required |",
    ):
        assert any(found.startswith(line) for found in lines)
    assert not any(
        word in page() for word in ("typing.", "<class", "Annotated", "PydanticUndefined")
    )


def test_the_example_is_a_config() -> None:
    assert parse_config(yaml.safe_load(EXAMPLE)).selection.policy == "llkd"
