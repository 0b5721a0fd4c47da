"""Whether an autoscaler serves the cluster, and how a pool makes it add nodes.

That an autoscaler runs can be detected. Which nodes it may add is not published by those of
`ray up` and KubeRay in Ray 2.60; others publish it.
"""

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llkd.cluster import ray_internals

READONLY_TYPE = "node_"
"""Prefix of the node types that Ray's monitor reports, one a node, where no autoscaler runs."""

POLL_SECONDS = 1.0
"""Interval between two checks whether nodes have come."""
CLAIM_SECONDS = 30.0
"""Time for a pool to occupy a new node, before another node is requested."""


def addable_nodes() -> list[dict[str, float]]:
    """Resources of the node types that the autoscaler publishes; empty where it publishes none."""
    try:
        return ray_internals.declared_node_types()
    except Exception:  # no Ray is connected, or an older one runs
        return []


def is_running() -> bool:
    """Whether an autoscaler serves this cluster, not only a monitor that reports on it."""
    try:
        return ray_internals.is_autoscaler_v2() or adds_nodes(ray_internals.autoscaler_status())
    except Exception:  # no Ray is connected, or an older one runs
        return False


def adds_nodes(status: bytes | None) -> bool:
    """Whether the monitor that reported this status adds nodes; None stands for no report."""
    report = json.loads(status).get("autoscaler_report") if status else None
    types = [*report["active_nodes"], *report["pending_launches"]] if report else []
    return any(not name.startswith(READONLY_TYPE) for name in types)


@contextlib.contextmanager
def demand(bundles: Sequence[Mapping[str, float]], missing: Callable[[], int]) -> Iterator[None]:
    """Request nodes from the autoscaler within the block, by placement groups.

    Ray Data grows a pool of actors only onto existing nodes. The nodes that it requests itself it
    chooses by CPUs, GPUs and memory alone, and only from rates that it has measured.

    A group that gets its nodes is released at once for the pool to take them, and requested again
    if it is still missing after CLAIM_SECONDS. Ray Data counts new nodes every 20 seconds: the
    autoscaler's idle timeout must be longer.

    Args:
        bundles: of one group: all of them are placed, or none.
        missing: how many groups are still needed.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    requested: list[Any] = []
    done = threading.Event()

    def watch() -> None:
        placed_at = -math.inf
        while (wanted := missing()) and not done.wait(POLL_SECONDS):
            for group in [group for group in requested if _is_placed(group)]:
                remove_placement_group(group)
                requested.remove(group)
                placed_at = time.monotonic()
            while len(requested) < wanted and time.monotonic() - placed_at >= CLAIM_SECONDS:
                requested.append(placement_group([dict(bundle) for bundle in bundles]))
            while len(requested) > wanted:
                remove_placement_group(requested.pop())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        for group in requested:
            remove_placement_group(group)


def _is_placed(group: Any) -> bool:
    from ray.util.placement_group import placement_group_table

    return bool(placement_group_table(group)["state"] == "CREATED")
