"""What the actors of a pool reserve: resources of one node, or of several for each actor."""

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from llkd.cluster.connection import Resources, actors_of, options_of
from llkd.errors import ActorError

UNITS = 10_000
"""In which Ray counts a whole of any resource."""
LOOK_SECONDS = 1.0
"""Between two looks whether actors are gone."""


def bundles_of(resources: Resources, nodes: int) -> list[Resources]:
    """What one actor reserves, in parts of which each is on one node: all of it, or, over several
    nodes, one for each GPU with its share of the node's other resources.

    An engine that starts its workers by Ray wants bundles of one GPU (vLLM takes no others). What
    should be said is that those of a node lie together and the nodes differ. Ray cannot: its strict
    strategies are for all bundles of a group on one node, or each on its own. PACK, which is taken,
    fills as few nodes as it can. On nodes that have as many GPUs free as
    `resources` says that is what is wanted. On larger ones, or ones in use, a node may get more and
    another less, which costs speed alone. A resource that each node has once (`gpu_worker: 1`)
    makes it exact: no node holds more shares of it than one actor's.

    Args:
        resources: what an actor takes on each node; over several, a whole number of GPUs.
        nodes: over which it is spread.
    """
    if nodes == 1:
        return [resources]
    gpus = int(resources["GPU"])
    # Rounded down: a node must have room for the sum.
    share = {k: math.floor(v / gpus * UNITS) / UNITS for k, v in resources.items()}
    return [{**share, "GPU": 1.0}] * (gpus * nodes)


@contextlib.contextmanager
def reserved(resources: Resources, nodes: int) -> Iterator[dict[str, Any]]:
    """Ray Data's keyword arguments by which each actor of a pool reserves its resources.

    Over several nodes each actor is put into a placement group of its own, and so is whatever it
    starts; it takes no GPU of the group itself. An actor that dies is started again in its group.
    The group of one that Ray Data let go is removed, and all of them at the end. (Ray removes those
    of a process that was killed. A group is made here, for one that an actor makes outlives it.)

    Args:
        resources: what an actor takes on each node.
        nodes: over which it is spread.
    """
    if nodes == 1:
        yield options_of(resources)
        return
    import ray.data

    groups = _Groups(bundles_of(resources, nodes))
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            groups.remove_those_of_the_dead()

    # They only warn of memory, but ask for the options of an actor too: a group would be made for none.
    detection = ray.data.DataContext.get_current().issue_detectors_config
    detectors, detection.detectors = detection.detectors, []
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        # Called in this process, once for each actor that is begun.
        yield {"num_cpus": 0, "num_gpus": 0, "ray_remote_args_fn": lambda: groups.make()}
    finally:
        detection.detectors = detectors
        ended.set()
        thread.join()
        groups.close()


class _Groups:
    """The placement groups of a pool, each with the name of its actor."""

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
                raise ActorError("A replica was begun when its pool had ended.")
            group = placement_group(self._bundles, strategy="PACK")
            name = f"replica-{group.id.hex()}"
            self._groups[name] = group
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
        return {"name": name, "scheduling_strategy": strategy}

    def remove_those_of_the_dead(self) -> None:
        """Remove the groups whose actors do not come back."""
        dead = {actor["Name"] for actor in actors_of("replica") if actor["State"] == "DEAD"}
        with self._lock:
            self._remove(dead.intersection(self._groups))

    def close(self) -> None:
        """Remove all groups, and make no more."""
        with self._lock:
            self._closed = True
            self._remove(set(self._groups))

    def _remove(self, names: set[str]) -> None:
        from ray.util.placement_group import remove_placement_group

        for name in names:
            remove_placement_group(self._groups.pop(name))
