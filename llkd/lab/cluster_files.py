"""Checks a cluster file against a run's config, before the cluster costs money.

A file of Ray's cluster launcher is read as `ray up` reads it, a RayJob of KubeRay as Ray's
autoscaler reads it there. Both yield node types with their resources and limits. Kubernetes and the
KubeRay operator check their own requirements when the manifest is applied.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
import yaml

from llkd.cluster import ray_internals
from llkd.cluster.connection import times
from llkd.config.run import RunConfig
from llkd.errors import ConfigError

Cluster = dict[str, Any]
"""The configuration of Ray's autoscaler: `available_node_types`, `head_node_type`, `max_workers`, ..."""

PLACEHOLDER = "REPLACE"


def check(path: str, run: RunConfig) -> None:
    """Check that a cluster can provide what a run requests.

    Raises:
        ConfigError: naming the file and all of its problems.
    """
    found = problems(read(path), run)
    if found:
        raise ConfigError(f"{path} needs changes:" + "".join(f"\n- {each}" for each in found))


def read(path: str) -> dict[str, Any]:
    """Read the file.

    Raises:
        ConfigError: it is not readable, or is neither a launcher file nor a RayJob.
    """
    try:
        file = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(file, dict) or not ("available_node_types" in file or "kind" in file):
        raise ConfigError(
            f"{path} is neither a file of Ray's cluster launcher, which has available_node_types, "
            "nor a RayJob, which has a kind."
        )
    return file


def problems(file: Mapping[str, Any], run: RunConfig) -> list[str]:
    """All problems of a file for a run; empty if there are none."""
    places = {value: where for where, value in reversed(list(_placeholders(file)))}
    left = [f"{where} still says {PLACEHOLDER}: {value}" for value, where in places.items()][::-1]
    own = _rayjob_problems(file) if "kind" in file else _launcher_problems(file)
    try:
        cluster = autoscaler_config(file)
    except ConfigError as error:
        return [*left, *own, str(error)]
    return [*left, *own, *_type_problems(cluster), *_run_problems(cluster, run)]


def autoscaler_config(file: Mapping[str, Any]) -> Cluster:
    """The configuration of Ray's autoscaler for a launcher file or a RayJob.

    Raises:
        ConfigError: Ray refuses the file.
    """
    try:
        if "kind" in file:
            return ray_internals.kuberay_config(file["spec"]["rayClusterSpec"])
        return ray_internals.launcher_config(file)
    except Exception as error:  # jsonschema's, KeyError, NotImplementedError, ...
        reader = "autoscaler" if "kind" in file else "cluster launcher"
        reason = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
        raise ConfigError(f"Ray's {reader} refuses the file: {reason}") from error


def _placeholders(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(place, text) of each value that has a placeholder."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _placeholders(inner, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _placeholders(inner, f"{where}[{number}]")
    elif isinstance(value, str) and PLACEHOLDER in value:
        yield where, value


def _launcher_problems(file: Mapping[str, Any]) -> Iterator[str]:
    """Settings that leave a cluster of the launcher open, or keep its nodes from joining."""
    docker = file.get("docker") or {}
    if "-e RAY_AUTH_MODE=token" not in docker.get("run_options", []):
        yield "docker.run_options must have `-e RAY_AUTH_MODE=token`: otherwise no node asks for a token"
    if "~/.ray/auth_token" not in (file.get("file_mounts") or {}):
        yield "file_mounts must copy ~/.ray/auth_token: without it no node can start"
    for command in file.get("head_start_ray_commands", []):
        if "ray start" in command and "--dashboard-host=127.0.0.1" not in command:
            yield (
                "head_start_ray_commands must start Ray with --dashboard-host=127.0.0.1: "
                "otherwise the dashboard, which runs submitted code, listens on all networks"
            )


def _rayjob_problems(file: Mapping[str, Any]) -> Iterator[str]:
    """Settings of a RayJob that leave it open, or cost money without an error."""
    if (file.get("apiVersion"), file.get("kind")) != ("ray.io/v1", "RayJob"):
        yield f"it must be a RayJob of ray.io/v1, not {file.get('kind')} of {file.get('apiVersion')}"
        return
    spec = file.get("spec") or {}
    cluster = spec.get("rayClusterSpec") or {}
    if not spec.get("shutdownAfterJobFinishes"):
        yield "spec.shutdownAfterJobFinishes must be true: otherwise the cluster outlives the job"
    if cluster.get("rayVersion") != ray.__version__:
        yield (
            f"rayVersion is {cluster.get('rayVersion')}, and LLKD was installed with Ray "
            f"{ray.__version__}: both must be the same"
        )
    if (cluster.get("authOptions") or {}).get("mode") != "token":
        yield "authOptions.mode must be token: otherwise anyone who reaches the head can run code there"
    if not cluster.get("enableInTreeAutoscaling"):
        yield "enableInTreeAutoscaling must be true: otherwise groups stay at their replicas"


def _type_problems(cluster: Cluster) -> Iterator[str]:
    """Contradictory limits of node types, and a head that would run workers."""
    head = cluster["head_node_type"]
    for name, group in _workers(cluster).items():
        if group["min_workers"] > group["max_workers"]:
            yield (
                f"{name}: min_workers ({group['min_workers']}) is more than max_workers "
                f"({group['max_workers']})"
            )
    wanted = sum(group["max_workers"] for group in _workers(cluster).values())
    if cluster["max_workers"] < wanted:
        yield (
            f"max_workers ({cluster['max_workers']}) is less than the sum over the node types "
            f"({wanted})"
        )
    resources = cluster["available_node_types"][head].get("resources", {})
    if resources.get("CPU") != 0 or resources.get("GPU", 0) > 0:
        yield (
            f"{head}: resources must be {{CPU: 0}} (rayStartParams.num-cpus: '0' in a RayJob), so "
            f"that the head gets no work, not {resources}"
        )


def _run_problems(cluster: Cluster, run: RunConfig) -> Iterator[str]:
    """Resources that the run requests and the node types lack."""
    for setting, resources, count in (
        *(
            ("teacher.resources", teacher.resources, teacher.replicas[1] * teacher.nodes)
            for teacher in run.all_teachers
        ),
        ("student.resources", run.student.resources, run.student.most_workers),
        ("predict.resources", run.predict.resources, run.predict.replicas[1]),
    ):
        if resources is None:
            yield f"{setting} is not set, and cannot be derived while no worker node runs"
        else:
            yield from _fit_problems(cluster, setting, resources, count)


def _fit_problems(
    cluster: Cluster, setting: str, resources: Mapping[str, float], count: int
) -> Iterator[str]:
    """Check that the nodes can hold these resources `count` times."""
    wanted = ", ".join(f"{name}: {amount:g}" for name, amount in resources.items())
    groups = _workers(cluster)
    room = {name: _room(group["resources"], resources) for name, group in groups.items()}
    if not any(room.values()):
        have = "; ".join(f"{name} has {group['resources']}" for name, group in groups.items())
        yield f"{setting} asks for {{{wanted}}}, which no node type has: {have}"
        return
    places = sum(room[name] * group["max_workers"] for name, group in groups.items())
    if places < count:
        yield (
            f"{setting} {{{wanted}}} fits {places} times on all nodes that may be added, and the "
            f"run asks for up to {count}: raise max_workers, or lower the number of replicas or workers"
        )


def _room(available: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    """How many times the wanted resources fit on one node."""
    return min(times(available.get(name, 0), amount) for name, amount in wanted.items())


def _workers(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """The node types of workers."""
    types: dict[str, dict[str, Any]] = cluster["available_node_types"]
    return {name: group for name, group in types.items() if name != cluster["head_node_type"]}
