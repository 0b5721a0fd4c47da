"""Work over shards in Ray Data tasks, and how results and errors come back from there."""

import json
import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add, itemgetter
from typing import Any, Protocol

import ray

from llkd.cluster.connection import Resources, autoscales, options_of
from llkd.errors import LLKDError

AUTOSCALED_CPUS = 64
"""CPUs for which a cluster that scales is given tasks: it adds nodes only for what waits."""

SHARDS_AT_ONCE = 4
"""Shards that a task which only reads, counts and writes has in hand: while one waits for the
storage, another is computed."""

MOST_SHARDS_A_TASK = 256
"""What a task did is told when it ends, and done again if its process dies."""


def run_on_shards(
    work: Callable[[int], dict[str, Any]],
    shards: Sequence[int],
    *,
    shards_per_task: int | None = None,
    resources: Resources | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Call `work(shard)` for each shard in Ray Data tasks; yield (shard, result) as they end.

    A task takes a run of shards, for a task costs about a millisecond of the machine. `work`
    writes its tables itself; only its small JSON-able result comes back.

    Raises:
        LLKDError: what `work` raised, as itself.
    """

    if not shards:
        return
    runs = _runs(shards, shards_per_task or min(_fair_run(len(shards)), MOST_SHARDS_A_TASK))

    def run(row: dict[str, Any]) -> dict[str, Any]:
        return answer(lambda: [(shard, work(shard)) for shard in json.loads(row["item"])])

    dataset = data_of([list(part) for part in runs]).map(run, **options_of(resources or {"CPU": 1}))
    for row in dataset.iter_rows():
        yield from result_of(row)


FEW_SHARDS = 16
"""So many shards are added up sooner than a task has started."""


class Mergeable(Protocol):
    """A statistic: added over shards, and carried between processes as JSON."""

    def __add__(self, other: Any) -> Any:
        """Of both together."""

    def to_json(self) -> dict[str, Any]:
        """Plain lists."""

    @staticmethod
    def from_json(data: dict[str, Any]) -> Any:
        """The inverse of `to_json`."""


def sum_over_shards(
    kind: type[Mergeable],
    work: Callable[[int], Any],
    shards: Sequence[int],
    *,
    reserve: bool = True,
) -> Any:
    """Add up `work(shard)`, of a mergeable kind, over ascending shards, in Ray Data tasks; a few
    shards in this process.

    Tasks add up their run of shards, so that what reaches this process does not grow with them.
    There must be a shard; `work` is called from several threads.

    Args:
        kind: the class of what `work` returns.
        work: what to do with a shard.
        shards: its numbers, ascending.
        reserve: a CPU for each task. Without, as many tasks as there are CPUs run beside whatever
            holds these: for work that those who hold them wait for.

    Raises:
        LLKDError: what `work` raised, as itself.
    """

    import ray.data

    def total(part: Sequence[int]) -> Any:
        with ThreadPoolExecutor(SHARDS_AT_ONCE) as threads:
            return _merged(threads.map(work, part))

    if len(shards) <= FEW_SHARDS:
        return total(shards)

    def run(row: dict[str, Any]) -> dict[str, Any]:
        part = json.loads(row["item"])
        return answer(lambda: (part[0], total(part).to_json()))

    runs = [list(part) for part in _runs(shards, _fair_run(len(shards)))]
    options: dict[str, Any] = options_of({"CPU": 1})
    if not reserve:
        cpus = max(int(ray.cluster_resources().get("CPU", 1)), 1)
        options = {"num_cpus": 0, "compute": ray.data.TaskPoolStrategy(size=cpus)}
    dataset = data_of(runs).map(run, **options)
    parts = sorted((result_of(row) for row in dataset.iter_rows()), key=itemgetter(0))
    return _merged(kind.from_json(part) for _, part in parts)


def _merged(parts: Iterable[Any]) -> Any:
    """The sum of parts in their order, two of a like size at a time: what grows by being put
    together is not copied once for each part, and few parts are held."""
    stack: list[tuple[int, Any]] = []
    for part in parts:
        stack.append((1, part))
        while len(stack) > 1 and stack[-2][0] == stack[-1][0]:
            size, last = stack.pop()
            stack[-1] = (stack[-1][0] + size, stack[-1][1] + last)
    return reduce(add, (part for _, part in stack))


def data_of(items: Sequence[Any]) -> Any:
    """A data set of a block for each item, so that each is scheduled on its own."""
    import ray.data

    rows = [{"item": json.dumps(item)} for item in items]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def answer(call: Callable[[], Any]) -> dict[str, Any]:
    """What a call returned, or which LLKDError it raised: Ray Data keeps only an error's text."""
    try:
        return {"result": json.dumps(call()), "error": b""}
    except LLKDError as error:
        traceback.print_exc()
        return {"result": "null", "error": pickle.dumps(error)}


def result_of(row: dict[str, Any]) -> Any:
    """The inverse of `answer`: what was returned, or raised again as itself.

    Raises:
        LLKDError: of the kind that was raised there.
    """
    if row["error"]:
        raise pickle.loads(row["error"])
    return json.loads(row["result"])


def _fair_run(shards: int) -> int:
    """Shards a task, so that each CPU gets several tasks and no task is tiny."""
    cpus = max(int(ray.cluster_resources().get("CPU", 1)), AUTOSCALED_CPUS if autoscales() else 1)
    return max(shards // (cpus * 4), 1)


def _runs(shards: Sequence[int], length: int) -> list[Sequence[int]]:
    return [shards[i : i + length] for i in range(0, len(shards), length)]
