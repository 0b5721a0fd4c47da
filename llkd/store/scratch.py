"""Scratch folders in the system's temporary directory.

Each is locked by the process that made it, so that those of killed processes are recognised and
deleted.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from llkd.errors import StorageError

_PREFIX = "llkd-scratch-"
_GRACE_SECONDS = 60.0
"""A younger folder may not be locked yet."""

_locks: dict[Path, int] = {}
"""The folders of this process, and the descriptors that lock them."""


def make_scratch() -> Path:
    """A new folder, locked by this process; the caller deletes it.

    Raises:
        StorageError: it cannot be made.
    """
    for gone in [folder for folder in _locks if not folder.exists()]:
        if (lock := _locks.pop(gone, None)) is not None:  # else another thread was sooner
            os.close(lock)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise StorageError(
            f"Cannot write into {tempfile.gettempdir()}: {error}.",
            "Make room there, or set TMPDIR to another directory. The same command then resumes.",
        ) from error
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _locks[folder] = lock
    return folder


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is deleted at the end of the block.

    Raises:
        StorageError: it cannot be made.
    """
    folder = make_scratch()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear_dead() -> None:
    """Delete the folders of processes that have died, on this machine."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or just deleted
            if time.time() - folder.stat().st_mtime >= _GRACE_SECONDS and _is_dead(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_dead(folder: Path) -> bool:
    """Whether no process locks it."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
