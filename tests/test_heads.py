"""The helpers for heads of clusters: nothing outlives them, and a dead head is replaced."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import heads
from tests.heads import SharedHead, free_ports, reaped, wait_until


def test_what_a_process_leaves_behind_is_killed_too() -> None:
    with reaped() as environment:
        shell = "sleep 1000 & echo $!"
        done = subprocess.run(
            ["bash", "-c", f"({shell}) 2>&1 | head -1"],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        left = psutil.Process(int(done.stdout))
        assert left.is_running()
    assert not left.is_running() or left.status() == psutil.STATUS_ZOMBIE


def test_a_wait_fails_when_its_event_is_not_possible_any_more() -> None:
    seen = iter([False, False, True])
    wait_until(lambda: next(seen))
    with pytest.raises(AssertionError):
        wait_until(lambda: False, lambda: False)


def test_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20


class FakeHead:
    """A head that dies on request."""

    def __init__(self) -> None:
        self.alive, self.stops, self.closed = True, 0, False

    def is_alive(self) -> bool:
        return self.alive

    def stop_jobs(self) -> None:
        self.stops += 1
        if self.stops == 2:
            raise ConnectionError("it does not answer")


def test_a_shared_head_is_replaced_when_it_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def fake(folder: Path) -> Iterator[Any]:
        assert folder.is_dir()
        made = FakeHead()
        yield made
        made.closed = True

    monkeypatch.setattr(heads, "head", fake)
    shared = SharedHead(tmp_path)
    first: Any = shared.get()
    assert shared.get() is first
    assert first.stops == 1
    second: Any = shared.get()  # its jobs cannot be stopped
    assert second is not first
    assert first.closed
    second.alive = False
    third: Any = shared.get()
    assert third is not second
    assert second.closed
    shared.close()
    assert third.closed
