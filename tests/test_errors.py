import ast
import os
import pickle
import re
import sys
from pathlib import Path

import pytest

from llkd import errors
from llkd.cli import do_logged, errors_told, two_lines
from tests.conftest import ROOT, MakeConfig

ALL = [
    value for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.LLKDError)
]  # fmt: skip


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_errors_survive_pickle(kind: type[errors.LLKDError]) -> None:
    again = pickle.loads(pickle.dumps(kind("what, where, what to do")))
    assert type(again) is kind
    assert isinstance(again, errors.LLKDError)
    assert str(again) == "what, where, what to do"


SPLIT = {
    "a sentence": ("It is small. Raise it, or wait.", "It is small.", "Raise it, or wait."),
    "two sentences": ("It is full. Delete it. Run it.", "It is full.", "Delete it. Run it."),
    "a colon": ("budget = 0.1 is small: raise it", "budget = 0.1 is small", "Raise it."),
    "a semicolon": ("It has no template; use auto", "It has no template", "Use auto."),
    "a package": ("It needs peft: pip install 'x'", "It needs peft", "Install it: pip install 'x'"),
    "a list": (
        "a.yaml has wrong settings:\n  x: missing\n  y: must be text",
        "a.yaml has wrong settings: x: missing; y: must be text", errors.ConfigError.remedy,
    ),
    "a list and what to do": (
        "r/labels was made with other settings:\n  a: was 1, now 2\nSet run_dir to another",
        "r/labels was made with other settings: a: was 1, now 2", "Set run_dir to another.",
    ),
    "a word within": ("They set out. runs: 3", "They set out. runs: 3", errors.ConfigError.remedy),
}  # fmt: skip


@pytest.mark.parametrize(("message", "what", "todo"), SPLIT.values(), ids=SPLIT)
def test_a_message_in_two_lines(message: str, what: str, todo: str) -> None:
    assert errors.ConfigError(message).lines == (what, todo)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_kind_says_what_to_do(kind: type[errors.LLKDError]) -> None:
    assert re.fullmatch(r"[A-Z][^\n]{20,}\.", kind.remedy)


def test_what_messages_propose_is_in_the_second_line() -> None:
    """No message of the code leaves an advice in the first line."""
    kinds, seen = {kind.__name__: kind for kind in ALL}, 0
    for path in (ROOT / "llkd").rglob("*.py"):
        for name, text in literal_messages(path, kinds):
            what, todo = kinds[name](text).lines
            seen += todo != kinds[name].remedy
            assert not re.search(r"[.;:] (Run|Use|Set|Lower|use|lower|raise|delete) ", what), text
    assert seen > 30


def literal_messages(path: Path, kinds: dict[str, type]) -> list[tuple[str, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in kinds and node.args:
            pieces = getattr(node.args[0], "values", [node.args[0]])
            text = "".join(
                str(getattr(each, "value", "x")) if isinstance(each, ast.Constant) else "x."
                for each in pieces
            )
            found.append((node.func.id, text))  # type: ignore[attr-defined]
    return found


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
    assert second.startswith("  This is a bug, in LLKD or in a library")
    assert second.endswith(f"Log: {log}")
    assert "raise ZeroDivisionError" in log.read_text()


def test_a_bug_before_there_is_a_run_directory(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"), errors_told():
        raise ZeroDivisionError("by zero")
    first, second = capsys.readouterr().err.splitlines()
    log = Path(second.rpartition("Log: ")[2])
    assert first == "ZeroDivisionError: by zero"
    assert "raise ZeroDivisionError" in log.read_text()
    log.unlink()


def test_long_words_of_a_library_are_cut() -> None:
    what, _ = two_lines(errors.TeacherError("vLLM cannot load m: " + "x " * 5000), None)
    assert len(what) < 700
