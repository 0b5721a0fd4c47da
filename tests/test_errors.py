import ast
import os
import pickle
import re
import sys
from pathlib import Path

import pytest

from llkd import errors
from llkd.cli import do_logged, one_line, reported_errors, two_lines
from tests.conftest import ROOT, MakeConfig

ALL = [
    value for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.LLKDError)
]  # fmt: skip


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_errors_survive_pickle(kind: type[errors.LLKDError]) -> None:
    for error in (kind("a.csv is empty", "Delete it."), kind("a.csv is empty")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind
        assert (again.what, again.remedy, str(again)) == (error.what, error.remedy, str(error))


def test_what_and_remedy() -> None:
    error = errors.DataError("a.csv is empty", "Delete it.")
    assert (error.what, error.remedy) == ("a.csv is empty", "Delete it.")
    assert str(error) == "a.csv is empty. Delete it."
    assert str(errors.DataError("What is it?", "Look.")) == "What is it? Look."


def test_without_a_remedy_of_its_own_an_error_has_that_of_its_class() -> None:
    error = errors.DataError("a.csv is empty")
    assert error.remedy == errors.DataError.default_remedy
    assert str(error) == "a.csv is empty"


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_class_has_a_remedy(kind: type[errors.LLKDError]) -> None:
    assert re.fullmatch(r"[A-Z][^\n]{20,}\.", kind.default_remedy)


def test_the_first_line_holds_no_advice() -> None:
    """Every error separates what is wrong from what to do."""
    kinds, seen = {kind.__name__: kind for kind in ALL}, 0
    for path in (ROOT / "llkd").rglob("*.py"):
        for what, remedy in literal_messages(path, kinds):
            assert not re.search(r"[.;:] (Run|Use|Set|Lower|use|lower|raise|delete) ", what), what
            if remedy is not None:
                seen += 1
                assert re.match(r"[A-Zx`]", remedy), remedy
                assert remedy.endswith((".", "'", "`")), remedy
    assert seen > 30


def literal_messages(path: Path, kinds: dict[str, type]) -> list[tuple[str, str | None]]:
    """(what, remedy) of each error with literal texts; expressions become `x`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in kinds and node.args:
            texts = [text_of(argument) for argument in node.args]
            found.append((texts[0], texts[1] if len(texts) > 1 else None))
    return found


def text_of(node: ast.expr) -> str:
    pieces = getattr(node, "values", [node])
    return "".join(
        str(getattr(each, "value", "x")) if isinstance(each, ast.Constant) else "x"
        for each in pieces
    )


LISTS = {
    "a.yaml has wrong settings:\n  x: missing\n  y: must be text":
        "a.yaml has wrong settings: x: missing; y: must be text",
    "c needs changes:\n- a: no\n- b: none": "c needs changes: a: no; b: none",
    "one line": "one line",
}  # fmt: skip


@pytest.mark.parametrize(("text", "line"), LISTS.items())
def test_a_list_in_one_line(text: str, line: str) -> None:
    assert one_line(text) == line


def test_a_bug_is_told_in_two_lines_and_its_traceback_is_kept(
    make_config: MakeConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "stderr", os.fdopen(2, "w", closefd=False))  # as it is without pytest

    def work(console: object) -> None:
        raise ZeroDivisionError("by\nzero")

    assert do_logged("run", make_config(), work) == 1
    first, second = capfd.readouterr().out.splitlines()
    assert first == "ZeroDivisionError: by zero"
    (log,) = (tmp_path / "run/logs").glob("run-*.log")
    assert second.startswith("  This is a bug in LLKD or in a library")
    assert second.endswith(f"Log: {log}")
    assert "raise ZeroDivisionError" in log.read_text()


def test_a_bug_before_there_is_a_run_directory(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"), reported_errors():
        raise ZeroDivisionError("by zero")
    first, second = capsys.readouterr().err.splitlines()
    log = Path(second.rpartition("Log: ")[2])
    assert first == "ZeroDivisionError: by zero"
    assert "raise ZeroDivisionError" in log.read_text()
    log.unlink()


def test_long_words_of_a_library_are_cut() -> None:
    what, _ = two_lines(errors.TeacherError("vLLM cannot load m: " + "x " * 5000), None)
    assert len(what) < 700
