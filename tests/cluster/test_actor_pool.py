"""Pools of actors that map items, on a real local Ray."""

import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llkd.cluster import actor_pool
from llkd.errors import ActorError, DataError

pytestmark = pytest.mark.usefixtures("local_ray")


class Doubler:
    def __init__(self, factor: int) -> None:
        if factor == 0:
            raise DataError("no factor")
        self.factor = factor

    def __call__(self, item: Any) -> Any:
        if item == "bad":
            raise DataError("bad item")
        return {"item": item, "value": item * self.factor}


def test_typed_errors_come_out_as_themselves() -> None:
    for factor, item, message in ((0, 1, "no factor"), (2, "bad", "bad item")):
        with pytest.raises(DataError, match=message):
            list(
                actor_pool.run_on_actors(
                    Doubler, (factor,), [item], pool=(1, 1), resources={"CPU": 1}
                )
            )


def test_actors_take_all_items() -> None:
    results = actor_pool.run_on_actors(
        Doubler, (2,), list(range(9)), pool=(1, 2), resources={"CPU": 1}
    )
    assert sorted(result["value"] for result in results) == [2 * i for i in range(9)]
    none = actor_pool.run_on_actors(Doubler, (2,), [], pool=(1, 2), resources={"CPU": 1})
    assert list(none) == []


class Meeting:
    """Returns its process, once there are three processes."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def __call__(self, item: int) -> int:
        (self.folder / str(os.getpid())).touch()
        while len(list(self.folder.iterdir())) < 3:
            time.sleep(0.1)
        return os.getpid()


def test_the_first_pool_of_a_process_grows_while_items_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.data.context import AutoscalingConfig, DataContext

    # An earlier pool has set what this one must set itself.
    monkeypatch.setattr(DataContext.get_current(), "autoscaling_config", AutoscalingConfig())
    pids = actor_pool.run_on_actors(
        Meeting, (str(tmp_path),), list(range(40)), pool=(1, 3), resources={"CPU": 1}
    )
    assert len(set(pids)) == 3


class Pair:
    """Has a poisonous item, which raises once another item is in the same actor."""

    def __init__(self, calls: str) -> None:
        self.calls = Path(calls)
        self.others = self.poisoned = False

    def __call__(self, item: Any) -> Any:
        if item == "poison":
            self.poisoned = True
            with self.calls.open("a") as file:
                file.write("x")
            while not self.others:
                time.sleep(0.01)
            raise ZeroDivisionError("a bug")
        self.others = True
        while self.poisoned or len(self.calls.read_text()) < 2:
            time.sleep(0.01)


def test_an_actor_has_two_items_and_the_one_that_kills_it_is_named(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    calls.touch()
    with pytest.raises(ActorError, match='Work on "poison" failed 2 times.*a bug'):
        list(
            actor_pool.run_on_actors(
                Pair, (str(calls),), ["poison", "good"], pool=(1, 1), resources={"CPU": 1},
                max_failures=1,
            )
        )  # fmt: skip


class Mortal:
    """Appends its items to a file, and dies of one item, once."""

    def __init__(self, calls: str, deadly: int) -> None:
        self.calls, self.deadly = calls, deadly

    def __call__(self, item: int) -> Any:
        with open(self.calls, "a+") as file:
            file.write(f"{item}\n")
            file.flush()
            file.seek(0)
            if item == self.deadly and file.read().split().count(str(item)) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return item * 2


def test_a_death_within_a_batch_repeats_that_item_alone(tmp_path: Path) -> None:
    items, calls = list(range(200)), tmp_path / "calls"
    runs = actor_pool.guided_batches(items, 1)
    deadly = runs[0][3]
    assert len(runs[0]) > 4
    results = actor_pool.run_on_actors(
        Mortal, (str(calls), deadly), items, pool=(1, 1), resources={"CPU": 1}
    )
    assert sorted(results) == [2 * item for item in items]
    counts = Counter(map(int, calls.read_text().split()))
    assert counts[deadly] == 2
    # The actor may have been in an item of another batch at the same time.
    assert counts.total() <= len(items) + 2


@pytest.mark.parametrize("actors", [1, 3, 64])
@pytest.mark.parametrize("count", [0, 1, 17, 1000, 100_000])
def test_batches_are_long_at_first_and_single_at_the_end(actors: int, count: int) -> None:
    runs = actor_pool.guided_batches(range(count), actors)
    lengths = [len(run) for run in runs]
    assert [item for run in runs for item in run] == list(range(count))
    assert lengths == sorted(lengths, reverse=True)
    assert all(length <= actor_pool.MAX_BATCH for length in lengths)
    assert lengths[-16:] == [1] * min(16, count)
    # Those of full length, and for each actor 16 of each length below.
    assert len(runs) <= count / actor_pool.MAX_BATCH + actors * 16 * 6


def test_a_pool_adds_nodes_only_for_enough_items() -> None:
    assert [actor_pool.max_actors((1, 8), items, one_node_each=False) for items in (2, 20, 99)] == [
        2,
        8,
        8,
    ]
    assert [actor_pool.max_actors((1, 8), items, one_node_each=True) for items in (2, 20, 99)] == [
        1,
        5,
        8,
    ]
    assert [actor_pool.max_actors((3, 8), items, one_node_each=True) for items in (2, 4, 99)] == [
        2,
        3,
        8,
    ]
