"""Scratch folders: those of dead processes are deleted, and no others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llkd.errors import StorageError
from llkd.store import scratch
from llkd.store.scratch import clear_dead, make_scratch, scratch_folder

OWNER = "import signal; from llkd.store.scratch import make_scratch; print(make_scratch(), flush=True); signal.pause()"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_folders_are_cleared_when_their_owner_is_killed(temporary: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert owner.stdout is not None
    folder, mine = Path(owner.stdout.readline().strip()), make_scratch()
    other = temporary / "llkd-mine"
    other.mkdir()
    (folder / "model").write_text("half")
    long_ago = time.time() - 3600
    for each in (folder, mine, other):
        os.utime(each, (long_ago, long_ago))
    clear_dead()
    assert folder.exists()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    clear_dead()
    assert {path.name for path in temporary.iterdir()} == {mine.name, other.name}


def test_a_folder_that_nobody_locks_yet_is_left(temporary: Path) -> None:
    (temporary / "llkd-scratch-new").mkdir()
    clear_dead()
    assert (temporary / "llkd-scratch-new").exists()


def test_folders_for_a_while_are_deleted_and_their_locks_let_go(temporary: Path) -> None:
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), scratch_folder() as folder:  # noqa: PT012
            (folder / "x").write_text("x")
            raise ZeroDivisionError
    make_scratch()
    assert len(list(temporary.iterdir())) == len(scratch._locks.keys() & set(temporary.iterdir()))
    assert len(scratch._locks) <= 2


def test_a_temporary_directory_that_cannot_be_written_is_told(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(temporary / "nothing"))
    with pytest.raises(StorageError, match="Cannot write into .*nothing.*TMPDIR"):
        make_scratch()
