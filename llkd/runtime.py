"""Connecting to Ray, and running work over shards on it."""

import json
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llkd import errors
from llkd.errors import LLKDError, ResourceError

ADDRESS_VARIABLE = "RAY_ADDRESS"

# Before Ray is imported: without it a local Ray listens on the machine's outer address. With it
# every port of a Ray that is started here binds to 127.0.0.1. On a cluster other nodes have to
# reach this process.
if not os.environ.get(ADDRESS_VARIABLE):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # This machine is not taken away; the watcher is one process more that each training starts.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

import ray  # noqa: E402

Resources = dict[str, float]


def connect() -> bool:
    """Join the Ray cluster that RAY_ADDRESS names, else start Ray on this machine.

    Returns:
        Whether an existing cluster was joined.

    Raises:
        ResourceError: the cluster cannot be reached.
    """
    address = os.environ.get(ADDRESS_VARIABLE)
    arguments: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    if not address:
        arguments |= {"address": "local", "include_dashboard": False}
    try:
        ray.init(**arguments)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address}" if address else "Ray on this machine"
        raise ResourceError(f"Cannot start on {where}: {error}") from error
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    return bool(address)


def disconnect() -> None:
    """Leave the cluster, or stop the Ray that `connect` started."""
    ray.shutdown()


def is_local() -> bool:
    """Whether this process works on a Ray of its own, on this machine."""
    return not os.environ.get(ADDRESS_VARIABLE)


def cluster_has_gpus() -> bool:
    """Whether any node of the cluster has a GPU, or one that the autoscaler can add."""
    return any(node.get("GPU", 0) > 0 for node in _nodes() + _addable_nodes())


def largest_node_cpus() -> float:
    """CPUs of the node that has most."""
    return max((node.get("CPU", 0) for node in _nodes() + _addable_nodes()), default=1)


def node_cpus() -> list[float]:
    """CPUs of each node that is there."""
    return [node.get("CPU", 0) for node in _nodes()]


def _nodes() -> list[Resources]:
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _addable_nodes() -> list[Resources]:
    """Resources of the node types that an autoscaler may add to this cluster."""
    from ray._private.state import state

    try:
        config = state.get_cluster_config()
        groups = config.node_group_configs if config else []
        return [dict(group.resources) for group in groups]
    except Exception:  # no autoscaler reports here
        return []


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
    nodes = _nodes()
    fits = any(all(node.get(k, 0) >= v for k, v in resources.items()) for node in nodes)
    if fits or autoscales():
        return
    have = "; ".join(
        ", ".join(f"{k}: {v:g}" for k, v in sorted(node.items()) if k in {"CPU", "GPU", *resources})
        for node in nodes
    )
    wanted = ", ".join(f"{k}: {v:g}" for k, v in resources.items())
    raise ResourceError(
        f"{setting} asks for {{{wanted}}}, which no node of this cluster has ({have}). "
        f"Lower {setting}, or use a larger machine."
    )


def autoscales() -> bool:
    """Whether nodes may still be added: an autoscaler reports on this cluster."""
    return bool(_addable_nodes())


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
    runs = _runs(shards, shards_per_task or _fair_run(len(shards)))

    def run(row: dict[str, Any]) -> dict[str, str]:
        return _answer(lambda: [(shard, work(shard)) for shard in json.loads(row["item"])])

    dataset = _items([list(part) for part in runs]).map(run, **options_of(resources or {"CPU": 1}))
    for row in dataset.iter_rows():
        yield from _result(row)


def run_on_actors(
    actor: Callable[..., Callable[[Any], Any]],
    arguments: tuple[Any, ...],
    items: Sequence[Any],
    *,
    pool: tuple[int, int],
    resources: Resources,
) -> list[Any]:
    """Call `actor(*arguments)(item)` for each item on a pool of Ray Data actors.

    Args:
        actor: a class whose instances take an item and return a result, both small and JSON-able.
        arguments: for its constructor.
        items: an item that an actor dies on is given to another.
        pool: fewest and most actors; the pool grows while items wait.
        resources: what one actor reserves.

    Raises:
        LLKDError: what the actor raised, as itself.
    """
    import ray.data

    most = min(pool[1], len(items))
    if most == 0:
        return []
    dataset = _items(items).map(
        _Replica,
        fn_constructor_args=(actor, arguments),
        compute=ray.data.ActorPoolStrategy(
            min_size=min(pool[0], most), max_size=most, max_tasks_in_flight_per_actor=2
        ),
        **options_of(resources),
    )
    return [_result(row) for row in dataset.iter_rows()]


class _Replica:
    """An actor of the pool. Its constructor does not raise: Ray would tell the text only."""

    def __init__(
        self, actor: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]
    ) -> None:
        self._failure: LLKDError | None = None
        try:
            self._actor = actor(*arguments)
        except LLKDError as error:
            self._failure = error

    def __call__(self, row: dict[str, Any]) -> dict[str, str]:
        return _answer(lambda: self._call(json.loads(row["item"])))

    def _call(self, item: Any) -> Any:
        if self._failure is not None:
            raise self._failure
        return self._actor(item)


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
    tasks = max(int(ray.cluster_resources().get("CPU", 1)) * 4, 1)
    return max(shards // tasks, 1)


def _runs(shards: Sequence[int], length: int) -> list[Sequence[int]]:
    return [shards[i : i + length] for i in range(0, len(shards), length)]
