"""Connecting to Ray, and running work over shards on it."""

import json
import logging
import os
import secrets
import socket
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial, reduce
from operator import add, itemgetter
from typing import Any, Protocol

from llkd import autoscaling, errors
from llkd.errors import ActorError, LLKDError, ResourceError

ADDRESS_VARIABLE = "RAY_ADDRESS"
REACH_SECONDS = 20.0
"""How long a cluster may take to accept a connection."""

# Before Ray is imported: without it a local Ray listens on the machine's outer address. With it
# every port of a Ray that is started here binds to 127.0.0.1. On a cluster other nodes have to
# reach this process.
if not os.environ.get(ADDRESS_VARIABLE):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # An engine in a process of its own must not outlive an actor that is killed.
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "1")
    # This machine is not taken away; the watcher is one process more that each training starts.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Seconds between Ray Train's looks at its workers, by which it notices that they are done.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")

import ray  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

Resources = dict[str, float]

AUTOSCALED_CPUS = 64
"""CPUs for which a cluster that scales is given tasks: it adds nodes only for what waits."""

SHARDS_AT_ONCE = 4
"""Shards that a task which only reads, counts and writes has in hand: while one waits for the
storage, another is computed."""


MOST_SHARDS_A_TASK = 256
"""What a task did is told when it ends, and done again if its process dies."""


def connect() -> bool:
    """Join the Ray cluster that RAY_ADDRESS names, else start Ray on this machine.

    Returns:
        Whether an existing cluster was joined.

    Raises:
        ResourceError: the cluster cannot be reached.
    """
    address = os.environ.get(ADDRESS_VARIABLE)
    if address:
        _require_reachable(address)
    arguments: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    if not address:
        arguments |= {"address": "local", "include_dashboard": False}
        use_own_token()
    try:
        ray.init(**arguments)
    except Exception as error:  # Ray raises many kinds, a time-out as a bare Exception
        where = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise ResourceError(
            f"Cannot start on {where}: {error} Run the same command again; if it fails again, see "
            "the log."
        ) from error
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    return bool(address)


def use_own_token() -> None:
    """Let nobody else into a Ray of this machine: whoever asks it must know a token, which Ray
    would otherwise keep in a file of the home directory. Ours is in the environment alone."""
    if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _require_reachable(address: str) -> None:
    """See that somebody listens at host:port, for Ray itself tries for ever.

    Raises:
        ResourceError: nobody does.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return  # "auto": Ray finds it by itself, or says that it cannot
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise ResourceError(
            f"{ADDRESS_VARIABLE} is {address}, and no Ray cluster answers there: {error}. Correct "
            "it, or unset it to work on a Ray of this machine."
        ) from error


def disconnect() -> None:
    """Leave the cluster, or stop the Ray that `connect` started."""
    ray.shutdown()


def is_local() -> bool:
    """Whether this process works on a Ray of its own, on this machine."""
    return not os.environ.get(ADDRESS_VARIABLE)


def cluster_has_gpus(setting: str) -> bool:
    """Whether any node of the cluster has a GPU, or one that the autoscaler can add.

    Args:
        setting: what to set where that cannot be known.

    Raises:
        ResourceError: no node has one now, and the autoscaler does not say which nodes it adds.
    """
    if any(node.get("GPU", 0) > 0 for node in nodes() + _addable_nodes()):
        return True
    if autoscales() and not _addable_nodes():
        raise ResourceError(
            f"No node of this cluster has a GPU now, and its autoscaler does not say which nodes "
            f"it can add. Set {setting}: {{GPU: 1, CPU: 1}} for GPUs, or {{CPU: 8}} to work "
            "without."
        )
    return False


def largest_node_cpus() -> float:
    """CPUs of the node that has most."""
    return max((node.get("CPU", 0) for node in nodes() + _addable_nodes()), default=1)


def cpus_each(actors: int) -> float:
    """CPUs of the largest node, divided by so many actors: whole ones, at least one."""
    return max(largest_node_cpus() // actors, 1)


def nodes() -> list[Resources]:
    """Resources of each node that is there."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _addable_nodes() -> list[Resources]:
    return [] if is_local() else autoscaling.addable_nodes()


def here() -> dict[str, Any]:
    """Ray's keyword arguments that keep an actor on this process's node: one that reserves nothing
    is else put on any, also on one that is taken away when it has no work."""
    node = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def options_of(resources: Resources) -> dict[str, Any]:
    """Ray's keyword arguments that reserve these resources."""
    rest = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
    options: dict[str, Any] = {
        "num_cpus": resources.get("CPU", 0),
        "num_gpus": resources.get("GPU", 0),
    }
    memory = rest.pop("memory", None)
    if memory is not None:
        options["memory"] = memory
    if rest:
        options["resources"] = rest
    return options


def require_resources(resources: Resources, setting: str) -> None:
    """See that some node can ever hold these resources.

    A cluster that scales by itself is trusted to add nodes for what none has now.

    Raises:
        ResourceError: naming what is asked, where, and what the nodes have.
    """
    there = nodes()
    fits = any(all(node.get(k, 0) >= v for k, v in resources.items()) for node in there)
    if fits or autoscales():
        return
    have = "; ".join(
        ", ".join(f"{k}: {v:g}" for k, v in sorted(node.items()) if k in {"CPU", "GPU", *resources})
        for node in there
    )
    wanted = ", ".join(f"{k}: {v:g}" for k, v in resources.items())
    raise ResourceError(
        f"{setting} asks for {{{wanted}}}, which no node of this cluster has ({have}). "
        f"Lower {setting}, or use a larger machine."
    )


def autoscales() -> bool:
    """Whether nodes may still be added: an autoscaler looks after this cluster."""
    return not is_local() and bool(autoscaling.addable_nodes() or autoscaling.is_running())


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

    def run(row: dict[str, Any]) -> dict[str, str]:
        return _answer(lambda: [(shard, work(shard)) for shard in json.loads(row["item"])])

    dataset = _items([list(part) for part in runs]).map(run, **options_of(resources or {"CPU": 1}))
    for row in dataset.iter_rows():
        yield from _result(row)


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

    def run(row: dict[str, Any]) -> dict[str, str]:
        part = json.loads(row["item"])
        return _answer(lambda: (part[0], total(part).to_json()))

    runs = [list(part) for part in _runs(shards, _fair_run(len(shards)))]
    options: dict[str, Any] = options_of({"CPU": 1})
    if not reserve:
        cpus = max(int(ray.cluster_resources().get("CPU", 1)), 1)
        options = {"num_cpus": 0, "compute": ray.data.TaskPoolStrategy(size=cpus)}
    dataset = _items(runs).map(run, **options)
    parts = sorted((_result(row) for row in dataset.iter_rows()), key=itemgetter(0))
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


def run_on_actors(
    actor: Callable[..., Callable[[Any], Any]],
    arguments: tuple[Any, ...],
    items: Sequence[Any],
    *,
    pool: tuple[int, int],
    resources: Resources,
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
        resources: what one actor reserves.
        max_failures: how often an actor may die at its start, or actors on one item.

    Raises:
        LLKDError: what the actor raised, as itself.
        ActorError: actors died more often than `max_failures`.
    """
    import ray.data

    most = min(pool[1], len(items))
    if most == 0:
        return
    # Each has two items at once, and more actors are wanted as soon as all have.
    growth = ray.data.DataContext.get_current().autoscaling_config
    growth.actor_pool_util_upscaling_threshold = 1.0
    deaths = _Deaths.options(**here()).remote(max_failures)  # type: ignore[attr-defined]
    dataset = _items(falling_runs(items, most)).map(
        _Replica,
        fn_constructor_args=(actor, arguments, deaths),
        compute=ray.data.ActorPoolStrategy(
            min_size=min(pool[0], most),
            max_size=most,
            max_tasks_in_flight_per_actor=2,
            max_concurrent_calls_per_actor=2,
            enable_true_multi_threading=True,
        ),
        **options_of(resources),
    )
    returned = 0

    def missing() -> int:
        """Actors that the items still out would keep busy, beside those that Ray has begun: it asks
        for the nodes of these, and of the fewest, itself."""
        busy = min(most, (len(items) - returned) // ITEMS_AHEAD)
        return max(busy - max(_pool_size(), min(pool[0], most)), 0)

    with autoscaling.demand(resources, missing) if autoscales() else nullcontext():
        for row in dataset.iter_rows():
            results = _result(row)
            returned += len(results)
            yield from results


ITEMS_AHEAD = 4
"""Items that wait for an actor when it is worth a new node."""


def _pool_size() -> int:
    """Actors of this job's pool, whether they run or wait for a node."""
    from ray._private.state import actors

    job = ray.get_runtime_context().get_job_id()
    known = actors(job_id=ray.JobID.from_hex(job)).values()
    pool = [actor for actor in known if actor["ActorClassName"].startswith("MapWorker")]
    return sum(actor["State"] != "DEAD" for actor in pool)


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

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        return _answer(lambda: self._run(json.loads(row["item"])))

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


def _items(items: Sequence[Any]) -> Any:
    """A data set of a block for each item, so that each is scheduled on its own."""
    import ray.data

    rows = [{"item": json.dumps(item)} for item in items]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def _answer(call: Callable[[], Any]) -> dict[str, str]:
    """What a call returned, or which LLKDError it raised: Ray Data keeps only an error's text."""
    try:
        return {"result": json.dumps(call()), "kind": "", "message": ""}
    except LLKDError as error:
        traceback.print_exc()
        return {"result": "null", "kind": type(error).__name__, "message": str(error)}


def _result(row: dict[str, str]) -> Any:
    if row["kind"]:
        raise getattr(errors, row["kind"])(row["message"])
    return json.loads(row["result"])


def _fair_run(shards: int) -> int:
    """Shards a task, so that each CPU gets several tasks and no task is tiny."""
    cpus = max(int(ray.cluster_resources().get("CPU", 1)), AUTOSCALED_CPUS if autoscales() else 1)
    return max(shards // (cpus * 4), 1)


def _runs(shards: Sequence[int], length: int) -> list[Sequence[int]]:
    return [shards[i : i + length] for i in range(0, len(shards), length)]
