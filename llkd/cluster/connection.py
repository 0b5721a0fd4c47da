"""Connecting to Ray, and what its nodes have."""

import logging
import os
import secrets
import socket
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from llkd.cluster import autoscaling
from llkd.cluster.environment import ADDRESS_VARIABLE
from llkd.errors import ResourceError

REACH_SECONDS = 20.0
"""How long a cluster may take to accept a connection."""

START_ATTEMPTS = 3
"""Ray gives a node of its own half a minute to start; a busy machine may need longer."""


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
            where = f"the Ray cluster at {address}" if address else "Ray on this machine"
            raise ResourceError(
                f"Cannot start on {where}: {error}",
                "Run the same command again; if it fails again, read the log.",
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
            f"{ADDRESS_VARIABLE} is {address}, and no Ray cluster answers there: {error}.",
            "Correct it, or unset it to work on a Ray of this machine.",
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
            "No node of this cluster has a GPU now, and its autoscaler does not say which "
            "nodes it can add.",
            f"Set {setting}: {{GPU: 1, CPU: 1}} for GPUs, or {{CPU: 8}} to work without.",
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


def require_resources(resources: Resources, setting: str, spread: int = 1) -> None:
    """See that some node can ever hold these resources, or so many nodes at once.

    A cluster that scales by itself is trusted to add nodes for what none has now.

    Args:
        resources: what is asked for, of each node.
        setting: where it is asked for.
        spread: `teacher.nodes`, where it is a replica of the teacher.

    Raises:
        ResourceError: naming what is asked, where, and what the nodes have.
    """
    there = nodes()
    places = room_for(there, resources) if resources else spread
    if places >= spread or autoscales():
        return
    have = "; ".join(
        ", ".join(f"{k}: {v:g}" for k, v in sorted(node.items()) if k in {"CPU", "GPU", *resources})
        for node in there
    )
    wanted = ", ".join(f"{k}: {v:g}" for k, v in resources.items())
    if spread > 1:
        raise ResourceError(
            f"{setting} asks for {{{wanted}}} on each of {spread} nodes "
            f"(teacher.nodes), and this cluster has {places} such places ({have}).",
            f"Lower teacher.nodes or {setting}, or use more nodes.",
        )
    raise ResourceError(
        f"{setting} asks for {{{wanted}}}, which no node of this cluster has ({have}).",
        f"Lower {setting}, or use a larger machine.",
    )


def room_for(nodes: Sequence[Resources], resources: Resources) -> int:
    """How often these resources fit on the nodes beside each other."""
    return sum(
        min(times(node.get(name, 0), amount) for name, amount in resources.items())
        for node in nodes
    )


def times(there: float, amount: float) -> int:
    """How often an amount fits into what is there."""
    return int((there + 1e-9) // amount)


def autoscales() -> bool:
    """Whether nodes may still be added: an autoscaler looks after this cluster."""
    return not is_local() and bool(autoscaling.addable_nodes() or autoscaling.is_running())


CREWS = {"replica": "MapWorker", "worker": "RayTrainWorker"}
"""How the classes of actors begin that Ray Data and Ray Train do a stage's work with, by what a
person calls them."""


def crew_size(crew: str) -> int:
    """Actors of this job that run, of a crew in CREWS; 0 where Ray does not say."""
    try:
        return [actor["State"] for actor in actors_of(crew)].count("ALIVE")
    except Exception:  # of an interface of Ray's own, which raises what it likes
        return 0


def actors_of(crew: str) -> list[dict[str, Any]]:
    """What Ray tells of each actor of this job, of a crew in CREWS: `State`, `Name` and more."""
    from ray._private.state import actors

    job = ray.get_runtime_context().get_job_id()
    known = actors(job_id=ray.JobID.from_hex(job)).values()
    return [actor for actor in known if actor["ActorClassName"].startswith(CREWS[crew])]
