"""Resources that each actor of a pool reserves, on one node or on several."""

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from llkd.cluster.connection import Resources, actors_of, options_of
from llkd.errors import ActorError

RESOLUTION = 10_000
"""Ray counts resources in fractions of 1 / RESOLUTION."""
POLL_SECONDS = 1.0
"""Interval between two checks for dead actors."""


def bundles_of(resources: Resources, nodes: int) -> list[Resources]:
    """The bundles of one actor's placement group. On one node, a single bundle; on several nodes,
    one bundle per GPU, with its share of the node's other resources.

    An engine whose workers are started by Ray needs bundles of one GPU: vLLM accepts no others. The
    bundles of a node should be placed together, and on as many nodes as asked for, which Ray cannot
    express: its strict strategies place all bundles of a group on one node, or each on a different
    one. PACK fills as few nodes as possible. That is exact on nodes with as many free GPUs as
    `resources` names. On larger or partly used nodes one node may get more bundles than another,
    which costs speed only. A resource that each node has once (`gpu_worker: 1`) makes it exact
    everywhere: no node can hold more than one actor's share of it.

    Args:
        resources: resources of an actor on each node; on several nodes, a whole number of GPUs.
        nodes: the number of nodes that an actor spans.
    """
    if nodes == 1:
        return [resources]
    gpus = int(resources["GPU"])
    # Rounded down: a node must have room for the sum.
    share = {k: math.floor(v / gpus * RESOLUTION) / RESOLUTION for k, v in resources.items()}
    return [{**share, "GPU": 1.0}] * (gpus * nodes)


@contextlib.contextmanager
def reserved(resources: Resources, nodes: int) -> Iterator[dict[str, Any]]:
    """Ray Data's keyword arguments by which each actor of a pool reserves its resources.

    An actor that spans several nodes gets its own placement group, which captures the workers that
    it starts; the actor itself takes no GPU of it. An actor that dies is restarted in its group.
    The group of an actor that Ray Data releases is removed, and at the end all groups are. The driver
    creates the groups, so Ray removes them if the driver is killed; groups that an actor creates would
    outlive it.

    Args:
        resources: resources of an actor on each node.
        nodes: the number of nodes that an actor spans.
    """
    if nodes == 1:
        yield options_of(resources)
        return
    import ray.data

    groups = _Groups(bundles_of(resources, nodes))
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            groups.remove_those_of_the_dead()

    # Ray Data's issue detectors only warn of memory use, but call `ray_remote_args_fn` too, which
    # would create a group without an actor.
    detection = ray.data.DataContext.get_current().issue_detectors_config
    detectors, detection.detectors = detection.detectors, []
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        # Called in this process, once for each actor that is started.
        yield {"num_cpus": 0, "num_gpus": 0, "ray_remote_args_fn": lambda: groups.make()}
    finally:
        detection.detectors = detectors
        ended.set()
        thread.join()
        groups.close()


class _Groups:
    """The placement groups of a pool, by the names of their actors."""

    def __init__(self, bundles: Sequence[Resources]) -> None:
        self._bundles = [dict(bundle) for bundle in bundles]
        self._lock = threading.Lock()
        self._groups: dict[str, Any] = {}
        self._closed = False

    def make(self) -> dict[str, Any]:
        """Ray's keyword arguments for an actor in a new group.

        Raises:
            ActorError: the pool has ended.
        """
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        with self._lock:
            if self._closed:
                raise ActorError("A replica was started after its pool had ended.")
            group = placement_group(self._bundles, strategy="PACK")
            name = f"replica-{group.id.hex()}"
            self._groups[name] = group
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
        return {"name": name, "scheduling_strategy": strategy}

    def remove_those_of_the_dead(self) -> None:
        """Remove the groups whose actors are not restarted."""
        dead = {actor["Name"] for actor in actors_of("replica") if actor["State"] == "DEAD"}
        with self._lock:
            self._remove(dead.intersection(self._groups))

    def close(self) -> None:
        """Remove all groups, and refuse to make more."""
        with self._lock:
            self._closed = True
            self._remove(set(self._groups))

    def _remove(self, names: set[str]) -> None:
        from ray.util.placement_group import remove_placement_group

        for name in names:
            remove_placement_group(self._groups.pop(name))
