"""Work over shards on a real local Ray."""

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from llkd import runtime
from llkd.errors import ActorError, DataError, ResourceError, StorageError
from llkd.selection import Counts
from tests.conftest import SilentTracker

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


def test_every_shard_is_worked_on_once() -> None:
    results = list(runtime.run_on_shards(lambda shard: {"square": shard**2}, range(37)))
    assert sorted(results) == sorted([shard, {"square": shard**2}] for shard in range(37))
    assert list(runtime.run_on_shards(lambda shard: {}, [])) == []


def test_shards_per_task_does_not_matter() -> None:
    found = [
        sorted(s for s, _ in runtime.run_on_shards(lambda s: {}, range(10), shards_per_task=n))
        for n in (1, 3, 100)
    ]
    assert found == [list(range(10))] * 3


def test_typed_errors_come_out_of_tasks_and_actors_as_themselves() -> None:
    def work(shard: int) -> dict[str, Any]:
        raise DataError(f"shard {shard} is bad")

    with pytest.raises(DataError, match="shard 3 is bad"):
        list(runtime.run_on_shards(work, [3]))
    for factor, item, message in ((0, 1, "no factor"), (2, "bad", "bad item")):
        with pytest.raises(DataError, match=message):
            list(
                runtime.run_on_actors(Doubler, (factor,), [item], pool=(1, 1), resources={"CPU": 1})
            )


def test_other_errors_come_out_too() -> None:
    def work(shard: int) -> dict[str, Any]:
        raise ZeroDivisionError("a bug")

    with pytest.raises(Exception, match="a bug"):
        list(runtime.run_on_shards(work, [0]))


def test_actors_take_all_items() -> None:
    results = runtime.run_on_actors(
        Doubler, (2,), list(range(9)), pool=(1, 2), resources={"CPU": 1}
    )
    assert sorted(result["value"] for result in results) == [2 * i for i in range(9)]
    none = runtime.run_on_actors(Doubler, (2,), [], pool=(1, 2), resources={"CPU": 1})
    assert list(none) == []


class Slow:
    """Takes a while, and says in which process."""

    def __call__(self, item: int) -> int:
        time.sleep(0.5)
        return os.getpid()


def test_a_pool_grows_while_items_wait() -> None:
    pids = runtime.run_on_actors(Slow, (), list(range(40)), pool=(1, 3), resources={"CPU": 1})
    assert len(set(pids)) == 3


class Pair:
    """Returns only when it is called for a second item meanwhile."""

    def __init__(self) -> None:
        self.both = threading.Barrier(2)

    def __call__(self, item: Any) -> Any:
        self.both.wait(timeout=20)
        if item == "poison":
            raise ZeroDivisionError("a bug")
        threading.Event().wait(20)


def test_an_actor_has_two_items_and_the_one_that_kills_it_is_named() -> None:
    with pytest.raises(ActorError, match='Work on "poison" failed 2 times.*a bug'):
        list(
            runtime.run_on_actors(
                Pair, (), ["poison", "good"], pool=(1, 1), resources={"CPU": 1}, max_failures=1
            )
        )


class Mortal:
    """Keeps what it is called for in a file, and dies of one item, once."""

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


def test_a_death_within_a_run_of_items_costs_that_item_alone(tmp_path: Path) -> None:
    items, calls = list(range(200)), tmp_path / "calls"
    runs = runtime.falling_runs(items, 1)
    deadly = runs[0][3]
    assert len(runs[0]) > 4
    results = runtime.run_on_actors(
        Mortal, (str(calls), deadly), items, pool=(1, 1), resources={"CPU": 1}
    )
    assert sorted(results) == [2 * item for item in items]
    counts = Counter(map(int, calls.read_text().split()))
    assert counts[deadly] == 2
    # Another run was under way beside it, in one item of which the actor may have been.
    assert counts.total() <= len(items) + 2


@pytest.mark.parametrize("actors", [1, 3, 64])
@pytest.mark.parametrize("count", [0, 1, 17, 1000, 100_000])
def test_runs_are_long_first_few_and_single_at_the_end(actors: int, count: int) -> None:
    runs = runtime.falling_runs(range(count), actors)
    lengths = [len(run) for run in runs]
    assert [item for run in runs for item in run] == list(range(count))
    assert lengths == sorted(lengths, reverse=True)
    assert all(length <= runtime.LONGEST_RUN for length in lengths)
    assert lengths[-16:] == [1] * min(16, count)
    # Those of full length, and for each actor so many of each length below.
    assert len(runs) <= count / runtime.LONGEST_RUN + actors * 16 * 6


def test_resources_become_ray_options() -> None:
    assert runtime.options_of({"CPU": 2, "GPU": 1, "memory": 5.0, "tpu_host": 1}) == {
        "num_cpus": 2, "num_gpus": 1, "memory": 5.0, "resources": {"tpu_host": 1},
    }  # fmt: skip


def test_impossible_resources_name_what_there_is() -> None:
    runtime.require_resources({"CPU": 4}, "x")
    with pytest.raises(ResourceError, match=r"student.resources asks for \{CPU: 5\}.*\(CPU: 4\)"):
        runtime.require_resources({"CPU": 5}, "student.resources")


def test_who_does_not_know_the_token_is_not_let_in() -> None:
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    channel = grpc.insecure_channel(ray.get_runtime_context().gcs_address)
    stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
    request = gcs_service_pb2.GetAllNodeInfoRequest()

    def ask(token: str | None) -> int:
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        return len(stub.GetAllNodeInfo(request, metadata=metadata, timeout=60).node_info_list)

    assert ask(os.environ["RAY_AUTH_TOKEN"]) == 1
    for wrong in (None, "0" * 64):
        with pytest.raises(grpc.RpcError) as caught:
            ask(wrong)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


def test_a_ray_that_is_started_here_has_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setattr(ray, "init", lambda **arguments: None)
    assert not runtime.connect()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_the_silent_tracker_answers_like_the_real_one(tracker: SilentTracker) -> None:
    from llkd.progress import ProgressTracker

    for name in ("begin", "end", "update", "note", "missing", "shard", "epoch"):
        assert hasattr(ProgressTracker.__ray_metadata__.modified_class, name)  # type: ignore[attr-defined]
        getattr(tracker, name).remote("x")
    assert len(tracker.calls) == 7


def test_sums_over_many_shards_are_those_of_one_after_another() -> None:
    for count in (1, 3, 40):
        total = runtime.sum_over_shards(Counts, shard_counts, range(count))
        assert total.selected_s.tolist() == list(range(count))
        assert total.selected_c.tolist() == [sum(range(count))]


def test_what_those_who_hold_all_cpus_wait_for_needs_none() -> None:
    @ray.remote(num_cpus=4)
    class Holder:
        def here(self) -> bool:
            return True

    holder = Holder.remote()  # type: ignore[attr-defined]
    assert ray.get(holder.here.remote())
    total = runtime.sum_over_shards(Counts, shard_counts, range(20), reserve=False)
    ray.kill(holder)
    assert total.selected_s.tolist() == list(range(20))


def test_an_error_over_shards_is_raised_as_itself() -> None:
    def work(shard: int) -> Counts:
        if shard == 33:
            raise StorageError("shard 33 is damaged")
        return shard_counts(shard)

    with pytest.raises(StorageError, match="shard 33 is damaged"):
        runtime.sum_over_shards(Counts, work, range(40))


def shard_counts(shard: int) -> Counts:
    return Counts(np.array([shard]), np.array([shard]), float(shard))
