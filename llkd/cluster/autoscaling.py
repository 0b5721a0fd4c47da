"""What the autoscaler of a Ray cluster says of itself.

That there is one can be seen. Which nodes it may add, the autoscalers of `ray up` and of KubeRay
tell nobody in Ray 2.60; others do.
"""

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

READONLY_TYPE = "node_"
"""Where no autoscaler adds nodes, Ray's monitor reports a node type of this prefix for each node."""

STATUS_KEY = "__autoscaling_status"

LOOK_SECONDS = 1.0
"""Between two looks whether nodes have come."""
TAKE_SECONDS = 30.0
"""Within which a node that has come is taken; else it is asked for again."""


def addable_nodes() -> list[dict[str, float]]:
    """Resources of the node types that may be added, as far as the autoscaler tells."""
    from ray._private.state import state

    try:
        config = state.get_cluster_config()
    except Exception:  # no Ray, or none that knows of it
        return []
    groups = config.node_group_configs if config else []
    return [dict(group.resources) for group in groups]


def is_running() -> bool:
    """Whether an autoscaler looks after this cluster, and not only a monitor that reports on it."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    try:
        # The second version is switched on by KubeRay, where it scales, and by hand.
        return bool(is_autoscaler_v2()) or adds_nodes(_internal_kv_get(STATUS_KEY))
    except Exception:  # no Ray, or none that knows of it
        return False


def adds_nodes(status: bytes | None) -> bool:
    """Whether the monitor that reported this status adds nodes; None is no report."""
    report = json.loads(status).get("autoscaler_report") if status else None
    types = [*report["active_nodes"], *report["pending_launches"]] if report else []
    return any(not name.startswith(READONLY_TYPE) for name in types)


@contextlib.contextmanager
def demand(bundles: Sequence[Mapping[str, float]], missing: Callable[[], int]) -> Iterator[None]:
    """Have nodes added for so many reservations of these bundles, all of them or none, as are
    missing; none is kept: as soon as there are nodes for one it is given back, and asked for again
    if still missing.

    Ray Data lets a pool of actors grow on nodes that are there. Those that it asks for itself it
    chooses by CPUs, GPUs and memory alone, and only by rates that it has measured.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    asked: list[Any] = []
    done = threading.Event()

    def look() -> None:
        came = -math.inf
        while (wanted := missing()) and not done.wait(LOOK_SECONDS):
            for group in [group for group in asked if _is_placed(group)]:
                remove_placement_group(group)
                asked.remove(group)
                came = time.monotonic()
            while len(asked) < wanted and time.monotonic() - came >= TAKE_SECONDS:
                asked.append(placement_group([dict(bundle) for bundle in bundles]))
            while len(asked) > wanted:
                remove_placement_group(asked.pop())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        for group in asked:
            remove_placement_group(group)


def _is_placed(group: Any) -> bool:
    from ray.util.placement_group import placement_group_table

    return bool(placement_group_table(group)["state"] == "CREATED")
