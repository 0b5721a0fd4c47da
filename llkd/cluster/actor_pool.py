"""Map items over a pool of Ray Data actors that grows with the cluster and survives actor deaths."""

import json
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import ray

from llkd.cluster import autoscaling
from llkd.cluster.connection import Resources, actors_of, autoscales, here
from llkd.cluster.placement import bundles_of, reserved
from llkd.cluster.shard_tasks import data_of, outcome_of, results_of
from llkd.errors import ActorError, LLKDError

ITEMS_PER_NODE = 4
"""Waiting items that make another actor worth a new node."""

MAX_BATCH = 64
"""Items in a batch, at most: all of them wait for one actor even if another is idle."""
BATCHES_PER_ACTOR = 16
"""Batches that each actor would get of the remaining items, if all were as long as the next."""


def run_on_actors(
    actor: Callable[..., Callable[[Any], Any]],
    arguments: tuple[Any, ...],
    items: Sequence[Any],
    *,
    pool: tuple[int, int],
    resources: Resources,
    nodes: int = 1,
    max_failures: int = 3,
) -> Iterator[Any]:
    """Call `actor(*arguments)(item)` for each item on a pool of Ray Data actors; yield the results
    in the order in which they arrive.

    Args:
        actor: a class whose instances map an item to a result, both small and JSON-able. They are
            called for two items at once, from two threads, to overlap computation and I/O.
        arguments: of its constructor.
        items: an item whose actor dies is retried, by another actor or by the restarted one.
        pool: minimum and maximum size; the pool grows while items wait.
        resources: reserved by one actor, on each of its nodes.
        nodes: that one actor spans (see llkd/cluster/placement.py).
        max_failures: how many failed starts of an actor, or failed tries of an item, are retried.

    Raises:
        LLKDError: that the actor raised.
        ActorError: actors failed more often than `max_failures`.
    """
    if not items:
        return
    size = max_actors(pool, len(items), one_node_each=nodes > 1 and autoscales())
    fewest = min(pool[0], size)
    returned = 0

    def missing() -> int:
        """Nodes to request from the autoscaler: for actors that the remaining items would keep
        busy, without those that Ray Data has started, for which it requests nodes itself."""
        busy = min(size, (len(items) - returned) // ITEMS_PER_NODE)
        return max(busy - max(_pool_size(), fewest), 0)

    bundles = bundles_of(resources, nodes)
    with (
        reserved(resources, nodes) as reservation,
        autoscaling.demand(bundles, missing) if autoscales() else nullcontext(),
    ):
        attempts = _Attempts.options(**here()).remote(max_failures)  # type: ignore[attr-defined]
        compute = _pool_of(fewest, size)  # before the data set: it copies the context
        dataset = data_of(guided_batches(items, size)).map(
            _Replica,
            fn_constructor_args=(actor, arguments, attempts),
            compute=compute,
            **reservation,
        )
        for results in results_of(dataset):
            returned += len(results)
            yield from results


def _pool_of(fewest: int, most: int) -> Any:
    """Ray Data's strategy for actors that process two batches at once; the pool grows as soon as
    every actor has two."""
    from ray.data import ActorPoolStrategy, DataContext

    growth = DataContext.get_current().autoscaling_config
    growth.actor_pool_util_upscaling_threshold = 1.0
    return ActorPoolStrategy(
        min_size=fewest,
        max_size=most,
        max_tasks_in_flight_per_actor=2,
        max_concurrent_calls_per_actor=2,
        enable_true_multi_threading=True,
    )


def max_actors(pool: tuple[int, int], items: int, one_node_each: bool) -> int:
    """Maximum size of a pool for this number of items.

    Args:
        pool: configured minimum and maximum.
        items: to be mapped.
        one_node_each: whether each actor brings its own placement group on an autoscaling cluster.
            Ray Data then starts all actors as soon as one is busy, for it does not count the
            resources of such groups, and Ray adds nodes for each.
    """
    fewest, most = min(pool[0], items), min(pool[1], items)
    return max(min(most, items // ITEMS_PER_NODE), fewest) if one_node_each else most


def _pool_size() -> int:
    """Actors of this job's pool that run or wait for a node."""
    return sum(actor["State"] != "DEAD" for actor in actors_of("replica"))


def guided_batches(items: Sequence[Any], actors: int) -> list[list[Any]]:
    """Items in batches of falling length, as in guided self-scheduling: long ones first, as each
    batch costs the driver some milliseconds; short ones last, so that all actors end together."""
    batches, start = [], 0
    while start < len(items):
        length = max((len(items) - start) // (BATCHES_PER_ACTOR * actors), 1)
        batches.append(list(items[start : start + min(length, MAX_BATCH)]))
        start += len(batches[-1])
    return batches


@ray.remote(num_cpus=0)
class _Attempts:
    """Bounds the attempts of starts and items, and keeps the results of unfinished batches.

    Ray's own limits do not fit: `max_restarts` and `max_task_retries` count over an actor's whole
    life and over a batch, not per start and item; a process killed in its constructor does not
    count as one of `max_consecutive_actor_init_deaths`; and none of them names the item or keeps
    what the process raised last.
    """

    def __init__(self, max_failures: int) -> None:
        self._max_failures = max_failures
        self._begun: dict[str, int] = {}
        self._messages: dict[str, str] = {}
        self._results: dict[str, str] = {}

    def begin(self, name: str) -> tuple[str | None, str | None]:
        """Count an attempt: (why it must not be made, or None; its result if one is kept)."""
        if name in self._results:
            return None, self._results[name]
        failed = self._begun.get(name, 0)
        if failed > self._max_failures:
            last = self._messages.get(name, "it was killed: too little memory is the usual cause")
            return f"{name} failed {failed} times; the last time: {last}", None
        self._begun[name] = failed + 1
        return None, None

    def succeed(self, name: str, result: str | None) -> None:
        """Forget the attempts; keep the result, if it is part of a batch, until `forget`."""
        self._begun.pop(name, None)
        if result is not None:
            self._results[name] = result

    def forget(self, names: Sequence[str]) -> None:
        """A batch is finished: drop the results of its items."""
        for name in names:
            self._results.pop(name, None)

    def fail(self, name: str, message: str, others: Sequence[str]) -> None:
        """Record why an attempt failed; those of `others`, which die with it, do not count."""
        self._messages[name] = message
        for other in others:
            self._begun[other] -= 1


class _Replica:
    """An actor of the pool. Its constructor does not raise, as Ray would pass on the text only."""

    def __init__(
        self,
        actor: Callable[..., Callable[[Any], Any]],
        arguments: tuple[Any, ...],
        attempts: Any,
    ) -> None:
        self._failure: LLKDError | None = None
        self._attempts = attempts
        self._running: set[str] = set()
        # A restarted actor keeps its id.
        start = f"The start of replica {ray.get_runtime_context().get_actor_id()[:8]}"
        try:
            self._actor = self._attempt(start, lambda: actor(*arguments))
        except LLKDError as error:
            self._failure = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return outcome_of(lambda: self._map(json.loads(row["item"])))

    def _map(self, items: list[Any]) -> list[Any]:
        if self._failure is not None:
            raise self._failure
        names = [f"Work on {json.dumps(item)}" for item in items]
        keep = len(items) > 1
        results = [
            self._attempt(name, partial(self._actor, item), keep)
            for name, item in zip(names, items, strict=True)
        ]
        if keep:
            ray.get(self._attempts.forget.remote(names))
        return results

    def _attempt(self, name: str, call: Callable[[], Any], keep: bool = False) -> Any:
        """The result of a call, or the one kept from an earlier attempt.

        An unexpected exception ends this process: an engine that raised it may be broken, and Ray
        starts a new one.

        Raises:
            LLKDError: that the call raised.
            ActorError: it failed too often.
        """
        refusal, known = ray.get(self._attempts.begin.remote(name))
        if refusal is not None:
            raise ActorError(refusal)
        if known is not None:
            return json.loads(known)
        self._running.add(name)
        try:
            result = call()
        except LLKDError:
            raise
        except Exception as error:
            traceback.print_exc()
            others = sorted(self._running - {name})
            ray.get(self._attempts.fail.remote(name, f"{type(error).__name__}: {error}", others))
            os._exit(1)
        finally:
            self._running.discard(name)
        ray.get(self._attempts.succeed.remote(name, json.dumps(result) if keep else None))
        return result
