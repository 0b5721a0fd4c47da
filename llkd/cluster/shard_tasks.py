"""Map shards in Ray Data tasks, and return their results and typed errors."""

import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add, itemgetter
from typing import Any, Protocol

import ray

from llkd import errors
from llkd.cluster.connection import Resources, autoscales, options_of
from llkd.errors import LLKDError

AUTOSCALED_CPUS = 64
"""CPUs to create tasks for on an autoscaling cluster, which adds nodes only for waiting tasks."""

SHARDS_AT_ONCE = 4
"""Shards that an I/O-bound task processes at once: one is computed while another is read."""

MAX_SHARDS_PER_TASK = 256
"""A task returns its results when it ends, and is repeated if its process dies."""


def run_on_shards(
    work: Callable[[int], dict[str, Any]],
    shards: Sequence[int],
    *,
    shards_per_task: int | None = None,
    resources: Resources | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Call `work(shard)` for each shard in Ray Data tasks; yield (shard, result) as tasks end.

    A task takes several shards, as each task costs about a millisecond. `work` writes its tables
    itself, and returns a small JSON-able result.

    Raises:
        LLKDError: that `work` raised.
    """
    if not shards:
        return
    length = shards_per_task or min(_fair_length(len(shards)), MAX_SHARDS_PER_TASK)

    def run(row: dict[str, Any]) -> dict[str, Any]:
        return outcome_of(lambda: [(shard, work(shard)) for shard in json.loads(row["item"])])

    dataset = data_of(_batches(shards, length)).map(run, **options_of(resources or {"CPU": 1}))
    for results in results_of(dataset):
        yield from results


FEW_SHARDS = 16
"""Maximum number of shards to sum in this process, which is faster than starting a task."""


class Mergeable(Protocol):
    """A statistic that is summed over shards, and crosses processes as JSON."""

    def __add__(self, other: Any) -> Any:
        """The statistic of both."""

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
    """Sum `work(shard)` over ascending shards in Ray Data tasks; few shards in this process.

    Each task sums its own shards, so that the driver receives few parts. At least one shard is
    required; `work` is called from several threads.

    Args:
        kind: the class that `work` returns.
        work: maps a shard to its statistic.
        shards: their numbers, ascending.
        reserve: whether each task reserves a CPU. If not, one task per CPU runs beside the actors
            that reserve the CPUs: for work that these actors wait for.

    Raises:
        LLKDError: that `work` raised.
    """
    import ray.data

    def total(part: Sequence[int]) -> Any:
        with ThreadPoolExecutor(SHARDS_AT_ONCE) as threads:
            return _merged(threads.map(work, part))

    if len(shards) <= FEW_SHARDS:
        return total(shards)

    def run(row: dict[str, Any]) -> dict[str, Any]:
        part = json.loads(row["item"])
        return outcome_of(lambda: (part[0], total(part).to_json()))

    options: dict[str, Any] = options_of({"CPU": 1})
    if not reserve:
        cpus = max(int(ray.cluster_resources().get("CPU", 1)), 1)
        options = {"num_cpus": 0, "compute": ray.data.TaskPoolStrategy(size=cpus)}
    dataset = data_of(_batches(shards, _fair_length(len(shards)))).map(run, **options)
    parts = sorted(results_of(dataset), key=itemgetter(0))
    return _merged(kind.from_json(part) for _, part in parts)


def _merged(parts: Iterable[Any]) -> Any:
    """The sum of parts in order, as a balanced tree: a statistic that grows when merged is not copied
    for each part, and few parts are in memory at a time."""
    stack: list[tuple[int, Any]] = []
    for part in parts:
        stack.append((1, part))
        while len(stack) > 1 and stack[-2][0] == stack[-1][0]:
            size, last = stack.pop()
            stack[-1] = (stack[-1][0] + size, stack[-1][1] + last)
    return reduce(add, (part for _, part in stack))


def data_of(items: Sequence[Any]) -> Any:
    """A data set with one block per item, so that each item is scheduled separately."""
    import ray.data

    rows = [{"item": json.dumps(item)} for item in items]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def outcome_of(call: Callable[[], Any]) -> dict[str, Any]:
    """The result of a call or the LLKDError that it raised, as a row.

    An error is returned as a value because Ray Data changes errors that are raised: it keeps only the
    text, or, with `raise_original_map_exception`, appends advice on its own settings to the message
    and logs the error as a bug of Ray.
    """
    try:
        return {"result": json.dumps(call()), "error": ""}
    except LLKDError as error:
        traceback.print_exc()
        return {"result": "null", "error": json.dumps([type(error).__name__, *error.args])}


def results_of(dataset: Any) -> Iterator[Any]:
    """The results in a data set of outcomes, in the order in which they arrive.

    Raises:
        LLKDError: that a call raised.
    """
    for row in dataset.iter_rows():
        if row["error"]:
            kind, *arguments = json.loads(row["error"])
            raise getattr(errors, kind)(*arguments)
        yield json.loads(row["result"])


def _fair_length(shards: int) -> int:
    """Shards per task, so that each CPU gets several tasks and no task is tiny."""
    cpus = max(int(ray.cluster_resources().get("CPU", 1)), AUTOSCALED_CPUS if autoscales() else 1)
    return max(shards // (cpus * 4), 1)


def _batches(shards: Sequence[int], length: int) -> list[list[int]]:
    return [list(shards[i : i + length]) for i in range(0, len(shards), length)]
