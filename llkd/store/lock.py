"""Mutual exclusion of jobs in a run directory.

On a disk this is a lock of the operating system, which is released however its process ends. On an
object store, and on a shared disk without locks, it is a lease: each job writes its own claim, renews
it, and then lists all claims. A job that finds another live claim withdraws. Of two jobs that start at
the same moment, at least one sees the other, provided that listings are consistent, as those of S3 and
Google are. Ages are measured by the store's clock only. A lease is weaker than a lock: a killed job
holds it for another STALE_SECONDS, and a job that was cut off from the store for longer continues until
its next renewal.
"""

import contextlib
import errno
import fcntl
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pyarrow import fs

from llkd.errors import BusyError, StorageError
from llkd.store.filesystems import filesystem
from llkd.store.folder import Folder, portable_path

LOCK, LEASE = ".lock", ".lease"
RENEW_SECONDS, STALE_SECONDS = 15.0, 60.0
_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of `flock` on a disk that does not support locks."""

_UNKNOWN = "another job, which started at the same moment or has just ended"

_held: set[str] = set()
"""Directories that this process holds."""


@contextlib.contextmanager
def held(run_dir: str) -> Iterator[None]:
    """Hold a run directory for the duration of the block; reentrant within a process.

    Raises:
        BusyError: another process holds it, has taken it over, or started at the same moment.
        StorageError: it cannot be written.
    """
    filesystem_, path = filesystem(run_dir)
    if path in _held:
        yield
        return
    local = isinstance(filesystem_, fs.LocalFileSystem)
    with contextlib.ExitStack() as stack:
        if not (local and _locked(stack, Path(path), run_dir)):
            stack.enter_context(Lease(run_dir).kept())
        _held.add(path)
        stack.callback(_held.discard, path)
        yield


def _locked(stack: contextlib.ExitStack, folder: Path, run_dir: str) -> bool:
    """Lock a folder until the stack ends; False if the disk does not support locks.

    The file is never deleted: a lock on a deleted file excludes no other process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context((folder / LOCK).open("a+"))
    except OSError as error:
        raise StorageError(f"Cannot write into run_dir {run_dir}: {error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise _busy(run_dir, file.read() or "another process") from None
    except OSError as error:
        if error.errno in _WITHOUT_LOCKS:
            return False
        raise StorageError(f"Cannot lock {folder / LOCK}: {error}") from error
    with contextlib.suppress(OSError):  # full disk; the text only serves error messages
        file.truncate(0)
        file.write(_me())
        file.flush()
    return True


def _me() -> str:
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return f"process {os.getpid()} on {socket.gethostname()}, since {now}"


def _busy(run_dir: str, holder: str, more: str = "") -> BusyError:
    return BusyError(
        f"{portable_path(run_dir)} is in use by {holder}.",
        f"{more}Wait until it has ended, stop it, or set run_dir to another directory.",
    )


@dataclass
class Lease:
    """A claim to a run directory, valid while it is renewed."""

    run_dir: str
    lost: BusyError | None = None
    """Why the work was interrupted: another job has taken over."""
    _name: str = field(default_factory=lambda: uuid.uuid4().hex)
    _renewed: int = 0
    """When the claim was last written, in nanoseconds of the store's clock."""

    @property
    def folder(self) -> Folder:
        """The claims of all jobs."""
        return Folder(f"{self.run_dir.rstrip('/')}/{LEASE}")

    def take(self) -> None:
        """Acquire the lease, and remove stale claims.

        Raises:
            BusyError: another job holds it, or tries to acquire it at the same moment.
        """
        others = self._put()
        self._withdraw_for(others)
        for name in others:
            self.folder.delete_file(name)

    def renew(self) -> None:
        """Renew the lease for STALE_SECONDS.

        Raises:
            BusyError: another job has taken it.
        """
        before = self._renewed
        others = self._put()
        if self._renewed - before >= STALE_SECONDS * 1e9:  # otherwise they withdraw
            self._withdraw_for(others)

    def give_back(self) -> None:
        """Release the lease."""
        with contextlib.suppress(StorageError):  # the claim becomes stale
            self.folder.delete_file(self._name)

    def _put(self) -> dict[str, int]:
        """Write the claim; returns the times at which the other claims were written, by name.

        Raises:
            BusyError: the claim became stale in the meantime, and another job deleted it.
        """
        self.folder.write_bytes(self._name, _me().encode())
        claims = {name: state.modified for name, state in self.folder.files().items()}
        if self._name not in claims:
            raise _busy(self.run_dir, next(map(self._holder, claims), _UNKNOWN))
        self._renewed = claims.pop(self._name)
        return claims

    def _withdraw_for(self, others: Mapping[str, int]) -> None:
        """Withdraw the claim if another one is live.

        Raises:
            BusyError: another claim is live.
        """
        for name, renewed in others.items():
            left = STALE_SECONDS - (self._renewed - renewed) / 1e9
            if left > 0:
                self.give_back()
                more = f"If it was killed, it holds the directory for {left:.0f} seconds more. "
                raise _busy(self.run_dir, self._holder(name), more)

    def _holder(self, name: str) -> str:
        try:
            return self.folder.read_bytes(name).decode(errors="replace")
        except StorageError:
            return _UNKNOWN

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Hold the lease for the duration of the block, renewed from a thread.

        Raises:
            BusyError: another job holds the lease, or has taken it over and interrupted the work.
        """
        self.take()
        handler = signal.getsignal(signal.SIGINT)
        if handler == signal.SIG_IGN:  # in a background job, but the thread interrupts by it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        ended = threading.Event()
        thread = threading.Thread(target=self._renew_until, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        except KeyboardInterrupt:
            if self.lost is not None:
                raise self.lost from None
            raise
        finally:
            ended.set()
            thread.join()
            if handler == signal.SIG_IGN:
                signal.signal(signal.SIGINT, handler)
            self.give_back()

    def _renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(RENEW_SECONDS):
            try:
                self.renew()
            except StorageError:
                continue  # the store may recover before the lease becomes stale
            except BusyError as error:
                self.lost = error
                os.kill(os.getpid(), signal.SIGINT)
                return
