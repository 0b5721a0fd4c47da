"""What the autoscaler of a Ray cluster says of itself.

That there is one can be seen. Which nodes it may add, the autoscalers of `ray up` and of KubeRay
tell nobody in Ray 2.60; others do.
"""

import json

READONLY_TYPE = "node_"
"""Where no autoscaler adds nodes, Ray's monitor reports a node type of this prefix for each node."""

STATUS_KEY = "__autoscaling_status"


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
