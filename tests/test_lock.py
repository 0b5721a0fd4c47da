"""One job at a time in a run directory, and a killed one does not keep the next out."""

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from llkd import lock
from llkd.errors import BusyError
from llkd.lock import LEASE, STALE_SECONDS, Lease, held
from llkd.storage import Folder

HOLDER = "import sys, time; from llkd.lock import held\nwith held(sys.argv[1]): print(flush=True); time.sleep(99)"


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
    done = subprocess.run([sys.executable, "-c", HOLDER.replace("99", "0"), run_dir], check=False)
    assert done.returncode == 0


@dataclass
class Clock:
    now: float = 1e9

    def __call__(self) -> float:
        return self.now


def leases(folder: Path) -> tuple[Lease, Lease, Clock]:
    clock = Clock()
    one, other = (Lease(Folder(str(folder)), clock, settle_seconds=0) for _ in range(2))
    return one, other, clock


def test_a_lease_holds_while_it_is_renewed(tmp_path: Path) -> None:
    one, other, clock = leases(tmp_path)
    one.take()
    for _ in range(3):
        clock.now += STALE_SECONDS - 1
        with pytest.raises(BusyError, match="in use by process .* for 1 seconds more"):
            other.take()
        one.renew()
    one.give_back()
    other.take()


def test_a_lease_that_is_not_renewed_is_taken_over_and_its_owner_told(tmp_path: Path) -> None:
    one, other, clock = leases(tmp_path)
    one.take()
    clock.now += STALE_SECONDS
    other.take()
    with pytest.raises(BusyError):
        one.renew()
    one.give_back()  # not its own any more
    with pytest.raises(BusyError):
        one.take()
    other.renew()


def test_of_two_who_take_a_lease_at_once_the_last_has_it(tmp_path: Path) -> None:
    one, other, _ = leases(tmp_path)
    one.settle_seconds = 0.5
    refused: list[BusyError] = []

    def take() -> None:
        try:
            one.take()
        except BusyError as error:
            refused.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    while not (tmp_path / LEASE).exists():
        time.sleep(0.01)
    other._write()  # as one that looked before there was a lease
    thread.join()
    assert len(refused) == 1
    other.renew()


def test_a_lease_is_renewed_beside_the_work_that_ends_when_it_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.02)
    one, _, clock = leases(tmp_path)
    with one.kept():
        clock.now += 7
        while json.loads((tmp_path / LEASE).read_text())["renewed"] != clock.now:
            time.sleep(0.01)
    assert not (tmp_path / LEASE).exists()
    one, other, _ = leases(tmp_path)
    with pytest.raises(BusyError), one.kept():  # noqa: PT012
        for _ in range(300):  # the owner may be about to write, having just looked
            other._write()
            time.sleep(0.1)
    assert (tmp_path / LEASE).exists()


def test_a_disk_without_locks_gets_a_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: None)
    with held(str(tmp_path)):
        assert (tmp_path / LEASE).exists()
    assert not (tmp_path / LEASE).exists()
