"""One job at a time in a run directory.

On a disk a lock of the operating system, which falls with the process that holds it, however that
ends. On an object store, and on a shared disk that knows no locks, a lease: a small object that its
owner renews. A lease binds less than a lock. Clocks have to agree to some seconds; who is killed
holds it for STALE_SECONDS more; and of two that take it within SETTLE_SECONDS only the last to
write goes on, but one that a store keeps waiting for longer than that may not see the other.
"""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyarrow import fs

from llkd.config_file import portable_path
from llkd.errors import BusyError, StorageError
from llkd.storage import Folder, filesystem

LOCK, LEASE = ".lock", ".lease.json"
RENEW_SECONDS, STALE_SECONDS, SETTLE_SECONDS = 15.0, 60.0, 2.0
_WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}
"""What `flock` answers where the disk cannot lock."""

_held: set[str] = set()
"""What this process holds."""


@contextlib.contextmanager
def held(run_dir: str) -> Iterator[None]:
    """Hold a run directory for the while; nothing more where this process holds it already.

    Raises:
        BusyError: another process holds it, or has taken it over in the meantime.
        StorageError: it cannot be written.
    """
    filesystem_, path = filesystem(run_dir)
    if path in _held:
        yield
        return
    local = isinstance(filesystem_, fs.LocalFileSystem)
    with contextlib.ExitStack() as stack:
        if not (local and _locked(stack, Path(path), run_dir)):
            stack.enter_context(Lease(Folder(run_dir)).kept())
        _held.add(path)
        stack.callback(_held.discard, path)
        yield


def _locked(stack: contextlib.ExitStack, folder: Path, run_dir: str) -> bool:
    """Lock a folder until the stack ends; False where the disk knows no locks.

    The file stays: a lock on one that was deleted would keep nobody out.
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
    with contextlib.suppress(OSError):  # on a full disk: it only serves the message
        file.truncate(0)
        file.write(_me())
        file.flush()
    return True


def _me() -> str:
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return f"process {os.getpid()} on {socket.gethostname()}, since {now}"


def _busy(run_dir: str, holder: str, more: str = "") -> BusyError:
    return BusyError(
        f"{portable_path(run_dir)} is in use by {holder}. Wait until it has ended, stop it, or set "
        f"run_dir to another directory.{more}"
    )


@dataclass
class Lease:
    """A claim to a folder, that holds for as long as it is renewed."""

    folder: Folder
    clock: Callable[[], float] = time.time
    settle_seconds: float = SETTLE_SECONDS
    lost: bool = False
    """Whether somebody else has taken it."""
    _id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _holder: str = field(default_factory=_me)

    def take(self) -> None:
        """Take it, or take it over from one who has ceased to renew it.

        Raises:
            BusyError: somebody holds it.
        """
        found = self._read()
        if found is not None:
            left = found["renewed"] + STALE_SECONDS - self.clock()
            if left > 0:
                more = f" If it was killed, it holds the directory for {left:.0f} seconds more."
                raise _busy(self.folder.uri, found["holder"], more)
        self._write()
        time.sleep(self.settle_seconds)
        self._require_mine()

    def renew(self) -> None:
        """Hold it for another STALE_SECONDS.

        Raises:
            BusyError: somebody else has taken it.
        """
        self._require_mine()
        self._write()

    def give_back(self) -> None:
        """Let others have it."""
        with contextlib.suppress(BusyError, StorageError):  # it goes stale by itself
            self._require_mine()
            self.folder.delete_file(LEASE)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Take it, and renew it from a thread of its own for the while.

        Raises:
            BusyError: somebody holds it, or has taken it over: the work was interrupted then.
        """
        self.take()
        ended = threading.Event()
        thread = threading.Thread(target=self._renew_until, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        except KeyboardInterrupt:
            if self.lost:
                self._require_mine()
            raise
        finally:
            ended.set()
            thread.join()
            self.give_back()

    def _renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(RENEW_SECONDS):
            try:
                self.renew()
            except StorageError:
                continue  # the store may be back before the lease is stale
            except BusyError:
                self.lost = True
                os.kill(os.getpid(), signal.SIGINT)
                return

    def _require_mine(self) -> None:
        found = self._read()
        if found is not None and found["id"] != self._id:
            raise _busy(self.folder.uri, found["holder"])

    def _read(self) -> dict[str, Any] | None:
        """The lease that is there; None also for one that no owner can have written."""
        if not self.folder.exists(LEASE):
            return None
        data = self.folder.read_bytes(LEASE)
        try:
            found = json.loads(data)
            return {"id": found["id"], "holder": str(found["holder"]),
                    "renewed": float(found["renewed"])}  # fmt: skip
        except (KeyError, TypeError, ValueError):
            return None

    def _write(self) -> None:
        content = {"id": self._id, "holder": self._holder, "renewed": self.clock()}
        self.folder.write_json(LEASE, content)
