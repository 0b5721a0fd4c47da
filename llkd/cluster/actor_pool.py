"""Work over items on a pool of Ray Data actors, which grows with it and outlives its deaths."""

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
from llkd.cluster.shard_tasks import answer, data_of, result_of
from llkd.errors import ActorError, LLKDError


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
    as they come.

    Args:
        actor: a class whose instances take an item and return a result, both small and JSON-able.
            They are called for two items at once, from two threads, so that one item's input and
            output do not keep another waiting.
        arguments: for its constructor.
        items: an item that an actor dies on is given to another, or to the same one when Ray has
            started it again.
        pool: fewest and most actors; the pool grows while items wait.
        resources: what one actor reserves, on each of its nodes.
        nodes: over which one actor is spread (see llkd/cluster/placement.py).
        max_failures: how often an actor may die at its start, or actors on one item.

    Raises:
        LLKDError: what the actor raised, as itself.
        ActorError: actors died more often than `max_failures`.
    """
    import ray.data

    if not items:
        return
    most = most_actors(pool, len(items), at_once=nodes > 1 and autoscales())
    # Each has two items at once, and more actors are wanted as soon as all have.
    growth = ray.data.DataContext.get_current().autoscaling_config
    growth.actor_pool_util_upscaling_threshold = 1.0
    deaths = _Deaths.options(**here()).remote(max_failures)  # type: ignore[attr-defined]
    returned = 0

    def missing() -> int:
        """Actors that the items still out would keep busy, beside those that Ray has begun: it asks
        for the nodes of these, and of the fewest, itself."""
        busy = min(most, (len(items) - returned) // ITEMS_AHEAD)
        return max(busy - max(_pool_size(), min(pool[0], most)), 0)

    bundles = bundles_of(resources, nodes)
    with (
        reserved(resources, nodes) as reservation,
        autoscaling.demand(bundles, missing) if autoscales() else nullcontext(),
    ):
        dataset = data_of(falling_runs(items, most)).map(
            _Replica,
            fn_constructor_args=(actor, arguments, deaths),
            compute=ray.data.ActorPoolStrategy(
                min_size=min(pool[0], most),
                max_size=most,
                max_tasks_in_flight_per_actor=2,
                max_concurrent_calls_per_actor=2,
                enable_true_multi_threading=True,
            ),
            **reservation,
        )
        for row in dataset.iter_rows():
            results = result_of(row)
            returned += len(results)
            yield from results


ITEMS_AHEAD = 4
"""Items that wait for an actor when it is worth a new node."""


def most_actors(pool: tuple[int, int], items: int, at_once: bool) -> int:
    """Actors that a pool may have for so many items.

    Args:
        pool: fewest and most.
        items: what they do.
        at_once: whether Ray Data begins all of them as soon as one is busy, and Ray adds nodes for
            each: what is in a placement group of its own takes nothing that Ray Data counts.
    """
    fewest, most = min(pool[0], items), min(pool[1], items)
    return max(min(most, items // ITEMS_AHEAD), fewest) if at_once else most


def _pool_size() -> int:
    """Actors of this job's pool, whether they run or wait for a node."""
    return sum(actor["State"] != "DEAD" for actor in actors_of("replica"))


LONGEST_RUN = 64
"""Items that an actor is given at once, at most: all of them wait if there is no other one."""
RUNS_AHEAD = 16
"""Runs that each actor would have of the items that are left, were all as long as the next."""


def falling_runs(items: Sequence[Any], actors: int) -> list[list[Any]]:
    """Items cut into runs for actors to take one after another: long ones first, for each costs
    the driver some milliseconds; ever shorter ones, so that all end at about the same time."""
    runs, start = [], 0
    while start < len(items):
        length = max((len(items) - start) // (RUNS_AHEAD * actors), 1)
        runs.append(list(items[start : start + min(length, LONGEST_RUN)]))
        start += len(runs[-1])
    return runs


@ray.remote(num_cpus=0)
class _Deaths:
    """Counts what was begun and not ended, for Ray starts a dead actor again for ever; and keeps
    the results of runs that are not ended, so that no item of them is done again after a death."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._begun: dict[str, int] = {}
        self._said: dict[str, str] = {}
        self._results: dict[str, str] = {}

    def begin(self, what: str) -> tuple[str | None, str | None]:
        """Something is tried: (why it must not be, if it failed too often; its result, if there
        is one)."""
        if what in self._results:
            return None, self._results[what]
        failed = self._begun.get(what, 0)
        if failed > self._most:
            said = self._said.get(what, "it was killed: too little memory is the usual cause")
            return f"{what} failed {failed} times; the last time: {said}", None
        self._begun[what] = failed + 1
        return None, None

    def end(self, what: str, result: str | None) -> None:
        """It went well; the result is kept until it is forgotten."""
        self._begun.pop(what, None)
        if result is not None:
            self._results[what] = result

    def forget(self, whats: Sequence[str]) -> None:
        """A run has ended: the results of its items are on their way."""
        for what in whats:
            self._results.pop(what, None)

    def say(self, what: str, message: str, others: Sequence[str]) -> None:
        """Why it failed; the others fell with it by no fault of theirs."""
        self._said[what] = message
        for other in others:
            self._begun[other] -= 1


class _Replica:
    """An actor of the pool. Its constructor does not raise: Ray would tell the text only."""

    def __init__(
        self,
        actor: Callable[..., Callable[[Any], Any]],
        arguments: tuple[Any, ...],
        deaths: Any,
    ) -> None:
        self._failure: LLKDError | None = None
        self._deaths = deaths
        self._under_way: set[str] = set()
        # Ray gives an actor that it starts again its old name.
        me = f"The start of replica {ray.get_runtime_context().get_actor_id()[:8]}"
        try:
            self._actor = self._guarded(me, lambda: actor(*arguments))
        except LLKDError as error:
            self._failure = error

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return answer(lambda: self._run(json.loads(row["item"])))

    def _run(self, items: list[Any]) -> list[Any]:
        if self._failure is not None:
            raise self._failure
        names = [f"Work on {json.dumps(item)}" for item in items]
        kept = len(items) > 1
        results = [
            self._guarded(name, partial(self._actor, item), kept)
            for name, item in zip(names, items, strict=True)
        ]
        if kept:
            ray.get(self._deaths.forget.remote(names))
        return results

    def _guarded(self, what: str, call: Callable[[], Any], kept: bool = False) -> Any:
        """Call, unless it failed too often, or its result was kept. What it raises by mistake ends
        this process: an engine that met it may be broken, and Ray starts another."""
        refusal, known = ray.get(self._deaths.begin.remote(what))
        if refusal is not None:
            raise ActorError(refusal)
        if known is not None:
            return json.loads(known)
        self._under_way.add(what)
        try:
            result = call()
        except LLKDError:
            raise
        except Exception as error:
            traceback.print_exc()
            others = sorted(self._under_way - {what})
            ray.get(self._deaths.say.remote(what, f"{type(error).__name__}: {error}", others))
            os._exit(1)
        finally:
            self._under_way.discard(what)
        ray.get(self._deaths.end.remote(what, json.dumps(result) if kept else None))
        return result
