"""Connect to Ray, and query the resources of its nodes."""

import logging
import os
import secrets
import socket
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from llkd.cluster import autoscaling, ray_internals
from llkd.cluster.environment import ADDRESS_VARIABLE
from llkd.errors import ResourceError

CONNECT_SECONDS = 20.0
"""Time limit for the cluster to accept a connection."""

START_ATTEMPTS = 3
"""Ray gives a local node half a minute to start; a busy machine may need longer."""

Resources = dict[str, float]


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
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(**arguments)
            break
        except Exception as error:  # Ray raises many kinds, a time-out as a bare Exception
            ray.shutdown()
            if not address and attempt < START_ATTEMPTS and "timed out" in str(error):
                continue
            where = f"connect to the Ray cluster at {address}" if address else "start Ray here"
            raise ResourceError(
                f"Cannot {where}: {error}",
                "Run the same command again; if it fails again, read the log.",
            ) from error
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    return bool(address)


def use_own_token() -> None:
    """Protect a local Ray by a token that only this process's environment holds. Ray itself would
    keep one in the home directory."""
    if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _require_reachable(address: str) -> None:
    """Check that host:port accepts connections, since Ray itself retries for ever.

    Raises:
        ResourceError: it refuses them.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return  # "auto": Ray finds the cluster, or reports that it cannot
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ResourceError(
            f"{ADDRESS_VARIABLE} is {address}, and no Ray cluster answers there: {error}",
            f"Correct {ADDRESS_VARIABLE}, or unset it to use a local Ray.",
        ) from error


def disconnect() -> None:
    """Leave the cluster, or stop the local Ray that `connect` started."""
    ray.shutdown()


def is_local() -> bool:
    """Whether this process uses a local Ray instead of a cluster."""
    return not os.environ.get(ADDRESS_VARIABLE)


def cluster_has_gpus(setting: str) -> bool:
    """Whether a node of the cluster has a GPU, or a node that the autoscaler can add.

    Args:
        setting: the setting to name in the remedy.

    Raises:
        ResourceError: no node has one now, and the autoscaler does not publish its node types.
    """
    if any(node.get("GPU", 0) > 0 for node in nodes() + _addable_nodes()):
        return True
    if autoscales() and not _addable_nodes():
        raise ResourceError(
            "No node of this cluster has a GPU now, and its autoscaler does not publish which "
            "nodes it can add.",
            f"Set {setting}: {{GPU: 1, CPU: 1}} for GPUs, or {{CPU: 8}} to run without.",
        )
    return False


def largest_node_cpus() -> float:
    """CPUs of the largest node."""
    return max((node.get("CPU", 0) for node in nodes() + _addable_nodes()), default=1)


def cpus_each(actors: int) -> float:
    """The share of each of `actors` in the CPUs of the largest node: a whole number, at least 1."""
    return max(largest_node_cpus() // actors, 1)


def nodes() -> list[Resources]:
    """Resources of each node that is alive."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _addable_nodes() -> list[Resources]:
    return [] if is_local() else autoscaling.addable_nodes()


def here() -> dict[str, Any]:
    """Ray's keyword arguments that pin an actor to this process's node. An actor that reserves
    nothing could otherwise land on a node that the autoscaler removes as idle."""
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


def require_resources(resources: Resources, setting: str, spread: int = 1) -> None:
    """Check that the cluster can provide these resources, on `spread` nodes at once.

    An autoscaling cluster passes: it may add nodes.

    Args:
        resources: the resources requested on each node.
        setting: the setting that requests them.
        spread: `teacher.nodes`, for a replica of the teacher.

    Raises:
        ResourceError: it cannot; names the request, the setting, and the resources of the nodes.
    """
    alive = nodes()
    places = room_for(alive, resources) if resources else spread
    if places >= spread or autoscales():
        return
    have = "; ".join(
        ", ".join(f"{k}: {v:g}" for k, v in sorted(node.items()) if k in {"CPU", "GPU", *resources})
        for node in alive
    )
    wanted = ", ".join(f"{k}: {v:g}" for k, v in resources.items())
    if spread > 1:
        raise ResourceError(
            f"{setting} asks for {{{wanted}}} on each of {spread} nodes "
            f"(teacher.nodes), and this cluster has room for {places} of them ({have}).",
            f"Lower teacher.nodes or {setting}, or use more nodes.",
        )
    raise ResourceError(
        f"{setting} asks for {{{wanted}}}, which no node of this cluster has ({have}).",
        f"Lower {setting}, or use a larger machine.",
    )


def room_for(nodes: Sequence[Resources], resources: Resources) -> int:
    """How many times these resources fit on the nodes at once."""
    return sum(
        min(times(node.get(name, 0), amount) for name, amount in resources.items())
        for node in nodes
    )


def times(available: float, amount: float) -> int:
    """How many times an amount fits into what is available."""
    return int((available + 1e-9) // amount)


def autoscales() -> bool:
    """Whether an autoscaler may add nodes to this cluster."""
    return not is_local() and bool(autoscaling.addable_nodes() or autoscaling.is_running())


ACTOR_CLASSES = {"replica": "MapWorker", "worker": "RayTrainWorker"}
"""Prefix of the class name of the actors of Ray Data and Ray Train, by LLKD's name for them."""


def running_actors(kind: str) -> int:
    """Number of live actors of this job of a kind in ACTOR_CLASSES; 0 if Ray does not answer."""
    try:
        return [actor["State"] for actor in actors_of(kind)].count("ALIVE")
    except Exception:  # a private interface of Ray, which may raise anything
        return 0


def actors_of(kind: str) -> list[dict[str, Any]]:
    """Ray's record of each actor of this job of a kind in ACTOR_CLASSES: `State`, `Name`, ..."""
    known = ray_internals.actors_of_job(ray.get_runtime_context().get_job_id())
    return [actor for actor in known if actor["ActorClassName"].startswith(ACTOR_CLASSES[kind])]
