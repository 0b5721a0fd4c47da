"""Maps and sums over shards in tasks of a local Ray."""

from typing import Any

import numpy as np
import pytest
import ray

from llkd.cluster import shard_tasks
from llkd.distill.selection_counts import Counts
from llkd.errors import DataError, StorageError

pytestmark = pytest.mark.usefixtures("local_ray")


def test_every_shard_is_worked_on_once() -> None:
    results = list(shard_tasks.run_on_shards(lambda shard: {"square": shard**2}, range(37)))
    assert sorted(results) == sorted([shard, {"square": shard**2}] for shard in range(37))
    assert list(shard_tasks.run_on_shards(lambda shard: {}, [])) == []


def test_shards_per_task_does_not_matter() -> None:
    found = [
        sorted(s for s, _ in shard_tasks.run_on_shards(lambda s: {}, range(10), shards_per_task=n))
        for n in (1, 3, 100)
    ]
    assert found == [list(range(10))] * 3


def test_typed_errors_come_out_as_themselves() -> None:
    def work(shard: int) -> dict[str, Any]:
        raise DataError(f"shard {shard} is bad")

    with pytest.raises(DataError, match="shard 3 is bad"):
        list(shard_tasks.run_on_shards(work, [3]))


def test_other_errors_come_out_too() -> None:
    def work(shard: int) -> dict[str, Any]:
        raise ZeroDivisionError("a bug")

    with pytest.raises(Exception, match="a bug"):
        list(shard_tasks.run_on_shards(work, [0]))


def test_sums_over_many_shards_are_those_of_one_after_another() -> None:
    for count in (1, 3, 40):
        total = shard_tasks.sum_over_shards(Counts, shard_counts, range(count))
        assert total.selected_s.tolist() == list(range(count))
        assert total.selected_c.tolist() == [sum(range(count))]


def test_what_those_who_hold_all_cpus_wait_for_needs_none() -> None:
    @ray.remote(num_cpus=4)
    class Holder:
        def here(self) -> bool:
            return True

    holder = Holder.remote()  # type: ignore[attr-defined]
    assert ray.get(holder.here.remote())
    total = shard_tasks.sum_over_shards(Counts, shard_counts, range(20), reserve=False)
    ray.kill(holder)
    assert total.selected_s.tolist() == list(range(20))


def test_an_error_over_shards_is_raised_as_itself() -> None:
    def work(shard: int) -> Counts:
        if shard == 33:
            raise StorageError("shard 33 is damaged")
        return shard_counts(shard)

    with pytest.raises(StorageError, match="shard 33 is damaged"):
        shard_tasks.sum_over_shards(Counts, work, range(40))


def shard_counts(shard: int) -> Counts:
    return Counts(np.array([shard]), np.array([shard]), float(shard))
