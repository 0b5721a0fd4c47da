"""Scratch folders in the system's temporary directory.

The process that creates a folder locks it, so folders of killed processes are recognised and deleted.
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
"""Age below which a folder may not be locked yet."""

_locks: dict[Path, int] = {}
"""Folders of this process, with the descriptors that lock them."""


def make_scratch() -> Path:
    """Create a folder, locked by this process; the caller deletes it.

    Raises:
        StorageError: the folder cannot be created.
    """
    for gone in [folder for folder in _locks if not folder.exists()]:
        if (lock := _locks.pop(gone, None)) is not None:  # otherwise another thread has closed it
            os.close(lock)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise StorageError(
            f"Cannot write into {tempfile.gettempdir()}: {error}.",
            "Free space there or set TMPDIR to another directory, then run the same command to resume.",
        ) from error
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _locks[folder] = lock
    return folder


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Create a folder that is deleted at the end of the block.

    Raises:
        StorageError: the folder cannot be created.
    """
    folder = make_scratch()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear_dead() -> None:
    """Delete the folders of dead processes on this machine."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's folder, or just deleted
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
