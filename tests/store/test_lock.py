"""Mutual exclusion in a run directory, also after a job is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llkd.errors import BusyError
from llkd.store import lock
from llkd.store.folder import FileState, Folder
from llkd.store.lock import LEASE, STALE_SECONDS, Lease, held

HOLDER = "import signal, sys; from llkd.store.lock import held\nwith held(sys.argv[1]): print(flush=True); signal.pause()"


def test_a_second_process_is_told_who_holds_it_until_that_is_killed(tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    owner = subprocess.Popen([sys.executable, "-c", HOLDER, run_dir], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    owner.stdout.readline()
    for _ in range(2):  # who was refused has not harmed the lock
        with pytest.raises(
            BusyError, match=rf"run is in use by process {owner.pid} on .*, since 2"
        ):
            held(run_dir).__enter__()
    with held(str(tmp_path / "run/compare/llkd-0")):
        pass
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with held(run_dir):
        pass


def test_a_process_may_hold_it_twice_and_lets_go_after_an_error(tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), held(run_dir), held(run_dir + "/"):
        raise ZeroDivisionError
    taken = HOLDER.replace("signal.pause()", "pass")
    done = subprocess.run([sys.executable, "-c", taken, run_dir], check=False)
    assert done.returncode == 0


def leases(run_dir: Path) -> tuple[Lease, Lease]:
    return Lease(str(run_dir)), Lease(f"{run_dir}/")


def age(run_dir: Path, seconds: float) -> None:
    """Make all claims older by `seconds`."""
    for claim in (run_dir / LEASE).iterdir():
        put = claim.stat().st_mtime_ns - int(seconds * 1e9)
        os.utime(claim, ns=(put, put))


def test_a_lease_holds_while_it_is_renewed(tmp_path: Path) -> None:
    one, other = leases(tmp_path)
    one.take()
    for _ in range(3):
        age(tmp_path, STALE_SECONDS - 10)
        with pytest.raises(BusyError, match=r"in use by process .* for (10|[1-9]) seconds more"):
            other.take()
        one.renew()
    one.give_back()
    other.take()


def test_a_lease_that_is_not_renewed_is_taken_over_and_its_owner_told(tmp_path: Path) -> None:
    one, other = leases(tmp_path)
    one.take()
    one._renewed -= int(STALE_SECONDS * 1e9)
    age(tmp_path, STALE_SECONDS)
    other.take()
    assert [claim.name for claim in (tmp_path / LEASE).iterdir()] == [other._name]
    with pytest.raises(BusyError):
        one.renew()
    one.give_back()  # not its own any more
    with pytest.raises(BusyError):
        one.take()
    other.renew()


def test_a_claim_that_was_deleted_as_stale_while_it_was_renewed_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = leases(tmp_path)
    one.take()
    listed = Folder.files

    def files(folder: Folder) -> dict[str, FileState]:
        one.give_back()
        other.folder.write_bytes(other._name, b"process 7")
        return listed(folder)

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "files", files)
        with pytest.raises(BusyError, match="in use by process 7"):
            one.renew()


def test_a_lease_that_nobody_took_over_is_gone_on_with(tmp_path: Path) -> None:
    one, other = leases(tmp_path)
    one.take()
    one._renewed -= int(STALE_SECONDS * 1e9)
    one.renew()
    with pytest.raises(BusyError):
        other.take()


def test_of_two_who_take_a_lease_at_once_one_has_it_or_none(tmp_path: Path) -> None:
    one, other = leases(tmp_path)
    other._put()  # and has not looked yet
    with pytest.raises(BusyError):
        one.take()
    other._withdraw_for(other._put())  # it has seen nobody
    with pytest.raises(BusyError):
        one.take()


def test_an_owner_does_not_give_way_to_one_who_has_just_come(tmp_path: Path) -> None:
    one, other = leases(tmp_path)
    one.take()
    others = other._put()  # and has not looked yet
    one.renew()
    with pytest.raises(BusyError):
        other._withdraw_for(others)
    one.renew()


def test_many_who_take_a_lease_at_once(tmp_path: Path) -> None:
    had = []
    start = threading.Barrier(8)

    def take() -> None:
        lease = Lease(str(tmp_path))
        start.wait()
        with contextlib.suppress(BusyError):
            lease.take()
            had.append(lease)

    for _ in range(10):
        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(had) <= 1
        while had:
            had.pop().give_back()
        assert not list((tmp_path / LEASE).iterdir())


def test_a_lease_is_renewed_beside_the_work_that_ends_when_it_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.02)
    one, other = leases(tmp_path)
    with one.kept():
        put = one._renewed
        while one._renewed == put:
            time.sleep(0.01)
    assert not list((tmp_path / LEASE).iterdir())
    with pytest.raises(BusyError, match="in use by process"), one.kept():  # noqa: PT012
        monkeypatch.setattr(lock, "STALE_SECONDS", 0.0)  # it was cut off
        other.take()
        monkeypatch.setattr(lock, "STALE_SECONDS", 60.0)
        while True:  # it may be about to look by what it knew before
            one._renewed -= int(60e9)
            time.sleep(0.1)
    assert [claim.name for claim in (tmp_path / LEASE).iterdir()] == [other._name]


def test_a_disk_without_locks_gets_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with held(str(tmp_path)):
        assert len(list((tmp_path / LEASE).iterdir())) == 1
    assert not list((tmp_path / LEASE).iterdir())
