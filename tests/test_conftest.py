"""The shared fixtures: incomplete folders are made again, and a lost Ray is restarted."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from llkd.cluster import connection
from tests import conftest


def test_what_is_made_once_is_made_again_after_a_failure(
    made_once: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    calls: list[Path] = []

    def make(folder: Path) -> None:
        calls.append(folder)
        assert list(folder.iterdir()) == []
        (folder / "half").touch()
        if len(calls) == 1:
            raise OSError("disk full")

    name = request.node.name
    with pytest.raises(OSError, match="disk full"):
        made_once(name, make)
    folders = {made_once(name, make) for _ in range(2)}
    assert folders == {calls[0]}
    assert len(calls) == 2


def test_a_ray_that_was_lost_is_started_again(
    local_ray: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conftest.pytest_runtest_setup(request.node)
    connection.disconnect()
    with pytest.warns(UserWarning, match="started again: an earlier test has disconnected"):
        conftest.pytest_runtest_setup(request.node)
    assert conftest._ray_fault() is None
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert conftest._ray_fault() == "an earlier test left RAY_ADDRESS=127.0.0.1:1"
