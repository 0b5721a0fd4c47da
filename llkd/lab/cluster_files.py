"""Whether a cluster's file and a run's config fit together, before money is spent on finding out.

A file of Ray's cluster launcher is read as `ray up` reads it, a RayJob of KubeRay as Ray's
autoscaler does there. Both then name node types, with their resources and how many there may be.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from llkd.config.run import RunConfig
from llkd.errors import ConfigError
from llkd.lab import rayjob

Cluster = dict[str, Any]
"""What Ray's autoscaler is given: `available_node_types`, `head_node_type`, `max_workers`, ..."""

PLACEHOLDER = "REPLACE"


def check(path: str, run: RunConfig) -> None:
    """See that a run can have on a cluster what it asks for.

    Raises:
        ConfigError: naming the file and all that is wrong in it.
    """
    file = read(path)
    found = problems(file, run)
    if found:
        raise ConfigError(f"{path} needs changes:" + "".join(f"\n- {each}" for each in found))


def read(path: str) -> dict[str, Any]:
    """The file as it is.

    Raises:
        ConfigError: it cannot be read, or is neither a cluster of the launcher nor a RayJob.
    """
    try:
        file = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(file, dict) or not ("available_node_types" in file or "kind" in file):
        raise ConfigError(
            f"{path} is neither a file of Ray's cluster launcher, for it has no "
            "available_node_types, nor a RayJob, for it has no kind."
        )
    return file


def problems(file: Mapping[str, Any], run: RunConfig) -> list[str]:
    """All that is wrong with a file for a run; empty if nothing is."""
    places = {value: where for where, value in reversed(list(_placeholders(file)))}
    left = [f"{where} still says {PLACEHOLDER}: {value}" for value, where in places.items()][::-1]
    kubernetes = "kind" in file
    own = rayjob.problems(file) if kubernetes else list(_launcher_problems(file))
    try:
        cluster = rayjob.as_cluster(file) if kubernetes else prepared(file)
    except ConfigError as error:
        return [*left, *own, str(error)]
    return [*left, *own, *_type_problems(cluster), *_run_problems(cluster, run)]


def prepared(file: Mapping[str, Any]) -> Cluster:
    """A launcher's file with Ray's defaults, as `ray up` takes it.

    Raises:
        ConfigError: Ray refuses it.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        cluster = prepare_config(copy.deepcopy(dict(file)))
        validate_config(cluster)
    except Exception as error:  # jsonschema's, KeyError, NotImplementedError, ...
        said = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
        raise ConfigError(f"Ray's cluster launcher refuses the file: {said}") from error
    return dict(cluster)


def _placeholders(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(place, text) of all that is still to be filled in."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _placeholders(inner, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _placeholders(inner, f"{where}[{number}]")
    elif isinstance(value, str) and PLACEHOLDER in value:
        yield where, value


def _launcher_problems(file: Mapping[str, Any]) -> Iterator[str]:
    """What lets strangers in, or keeps everybody out."""
    docker = file.get("docker") or {}
    if "-e RAY_AUTH_MODE=token" not in docker.get("run_options", []):
        yield "docker.run_options must have `-e RAY_AUTH_MODE=token`: else no node asks for a token"
    if "~/.ray/auth_token" not in (file.get("file_mounts") or {}):
        yield "file_mounts must copy ~/.ray/auth_token: without it no node can start"
    for command in file.get("head_start_ray_commands", []):
        if "ray start" in command and "--dashboard-host=127.0.0.1" not in command:
            yield (
                "head_start_ray_commands must start Ray with --dashboard-host=127.0.0.1: else the "
                "dashboard, which runs what it is sent, listens on all networks"
            )


def _type_problems(cluster: Cluster) -> Iterator[str]:
    """How many nodes there may be, and that the head is no worker."""
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
            f"max_workers ({cluster['max_workers']}) is less than the node types may have together "
            f"({wanted})"
        )
    had = cluster["available_node_types"][head].get("resources", {})
    if had.get("CPU") != 0 or had.get("GPU", 0) > 0:
        yield f"{head}: resources must be {{CPU: 0}}, so that the head gets no work, not {had}"


def _run_problems(cluster: Cluster, run: RunConfig) -> Iterator[str]:
    """What the run asks for and the node types do not have."""
    for setting, resources, most in (
        *(
            ("teacher.resources", teacher.resources, teacher.replicas[1] * teacher.nodes)
            for teacher in run.teachers or (run.teacher,)
        ),
        ("student.resources", run.student.resources, run.student.most_workers),
        ("predict.resources", run.predict.resources, run.predict.replicas[1]),
    ):
        if resources is None:
            yield f"{setting} is not given: while no worker runs, nobody can tell what there will be"
        else:
            yield from _fit_problems(cluster, setting, resources, most)


def _fit_problems(
    cluster: Cluster, setting: str, resources: Mapping[str, float], most: int
) -> Iterator[str]:
    """Whether so many times these resources fit on the nodes that there may be."""
    wanted = ", ".join(f"{name}: {amount:g}" for name, amount in resources.items())
    groups = _workers(cluster)
    room = {name: _room(group["resources"], resources) for name, group in groups.items()}
    if not any(room.values()):
        have = "; ".join(f"{name} has {group['resources']}" for name, group in groups.items())
        yield f"{setting} asks for {{{wanted}}}, which no node type has: {have}"
        return
    places = sum(room[name] * group["max_workers"] for name, group in groups.items())
    if places < most:
        yield (
            f"{setting} {{{wanted}}} fits {places} times on all nodes that there may be, and the "
            f"run asks for up to {most}: raise max_workers, or lower the most replicas or workers"
        )


def _room(have: Mapping[str, float], wanted: Mapping[str, float]) -> int:
    """How often the wanted resources fit on one node."""
    return min(int(have.get(name, 0) // amount) for name, amount in wanted.items())


def _workers(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """The node types but the head's."""
    types: dict[str, dict[str, Any]] = cluster["available_node_types"]
    return {name: group for name, group in types.items() if name != cluster["head_node_type"]}
