"""Examples from a labelled file."""

from pathlib import Path
from typing import Any

import pytest

from llkd.config.run import ExamplesConfig, TaskConfig
from llkd.errors import DataError
from llkd.teacher.examples import NearestExamples, draw, labelled_rows, with_drawn_examples
from llkd.teacher.prompting import make_prompter
from tests.conftest import MakeConfig
from tests.demo import prepared

ROWS = {
    "sport": ["The team won the match.", "A late goal.", "The coach resigned."],
    "tech": ["A faster phone.", "The browser was updated.", "New chips."],
}


@pytest.fixture
def source(tmp_path: Path) -> ExamplesConfig:
    lines = [f'"{text}",{label}' for label, texts in ROWS.items() for text in texts]
    (tmp_path / "labelled.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    return ExamplesConfig(path=str(tmp_path / "labelled.csv"), per_class=2)


TASK = TaskConfig(instruction="Which topic?", labels=["sport", "tech"])  # type: ignore[arg-type]


def test_so_many_of_each_label_by_seed(source: ExamplesConfig) -> None:
    rows = labelled_rows(source, TASK)
    drawn = draw(rows, 2, seed=0)
    assert sorted(example.label for example in drawn) == ["sport", "sport", "tech", "tech"]
    assert {example.label for example in drawn[:2]} == {"sport", "tech"}
    assert len({example.text for example in drawn}) == 4
    assert all(example.text in ROWS[example.label] for example in drawn)
    assert draw(rows, 2, seed=0) == drawn
    assert any(draw(rows, 2, seed=seed) != drawn for seed in range(1, 5))
    with pytest.raises(DataError, match="label 'sport' has 3 rows, fewer than per_class"):
        draw(rows, 4, seed=0)


def test_drawn_examples_are_part_of_the_run(
    source: ExamplesConfig, make_config: MakeConfig
) -> None:
    task = {"instruction": "?", "labels": ["sport", "tech"], "examples_from": source.model_dump()}
    config = with_drawn_examples(make_config(task=task, seed=3))
    assert len(config.task.examples) == 4
    assert config.task.examples_from is None


def test_a_wrong_label_is_told_with_its_row(source: ExamplesConfig) -> None:
    task = TASK.model_copy(update={"labels": {"sport": None, "trade": None}})
    with pytest.raises(DataError, match="row 3: label 'tech' is not one of task.labels"):
        labelled_rows(source, task)


def test_the_nearest_are_found_by_a_real_encoder(source: ExamplesConfig) -> None:
    encoder = str(prepared() / "student")
    nearest = source.model_copy(update={"choose": "nearest", "nearest": 2, "embedder": encoder})
    found = NearestExamples(nearest, TASK).of(["A new smartphone", "The football team lost"])
    assert [example.text for example in found[0]][-1] == "A faster phone."
    assert [example.text for example in found[1]][-1] == "The team won the match."
    assert all(len(examples) == 2 for examples in found)


def test_each_prompt_shows_its_own_nearest(source: ExamplesConfig) -> None:
    from transformers import AutoTokenizer

    from llkd.config.run import TeacherConfig

    tokenizer: Any = AutoTokenizer.from_pretrained(prepared() / "teacher")
    nearest = source.model_copy(
        update={"choose": "nearest", "nearest": 1, "embedder": str(prepared() / "student")}
    )
    task = TASK.model_copy(update={"examples_from": nearest})
    prompter = make_prompter(TeacherConfig(model="m"), task, tokenizer)
    first, second = prompter.prompts(["A new smartphone", "The football team lost"], 2048)
    assert "Text: A faster phone.\nLabel:" in tokenizer.decode(first)
    assert "Text: The team won the match.\nLabel:" in tokenizer.decode(second)
    assert tokenizer.decode(first).endswith(
        "Text: A new smartphone\nLabel:<|im_end|>\n<|im_start|>assistant\n"
    )
