"""What KubeRay's operator and Kubernetes ask of a RayJob, without either.

The rules are taken from the field reference of KubeRay 1.6 and Kubernetes' documentation. What Ray's
autoscaler makes of the groups is Ray's own code.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import ray

from llkd.errors import ConfigError

JOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata",
    "clusterSelector", "submitterConfig", "managedBy", "deletionStrategy", "entrypoint",
    "runtimeEnvYAML", "jobId", "submissionMode", "entrypointResources", "entrypointNumCpus",
    "entrypointNumGpus", "ttlSecondsAfterFinished", "preRunningDeadlineSeconds",
    "shutdownAfterJobFinishes", "suspend",
}  # fmt: skip
CLUSTER_FIELDS = {
    "upgradeStrategy", "authOptions", "suspend", "managedBy", "autoscalerOptions",
    "headServiceAnnotations", "enableInTreeAutoscaling", "gcsFaultToleranceOptions",
    "headGroupSpec", "rayVersion", "workerGroupSpecs",
}  # fmt: skip
HEAD_FIELDS = {
    "template", "headService", "enableIngress", "resources", "labels", "rayStartParams",
    "serviceType",
}  # fmt: skip
GROUP_FIELDS = {
    "suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds",
    "resources", "labels", "rayStartParams", "template", "scaleStrategy", "numOfHosts",
}  # fmt: skip
"""The fields that there are: the operator drops or refuses others."""

GPU = "nvidia.com/gpu"
MOST_REPLICAS = 2**31 - 1


def as_cluster(file: Mapping[str, Any]) -> dict[str, Any]:
    """What Ray's autoscaler is given for the job's cluster.

    Raises:
        ConfigError: Ray cannot read it.
    """
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr,
    )

    try:
        return dict(
            _derive_autoscaling_config_from_ray_cr(
                {
                    "metadata": {"name": "llkd", "namespace": "default"},
                    "spec": file["spec"]["rayClusterSpec"],
                }
            )
        )
    except Exception as error:  # KeyError, ValueError, jsonschema's, ...
        raise ConfigError(
            f"Ray's autoscaler cannot read spec.rayClusterSpec: {type(error).__name__}: {error}"
        ) from error


def problems(file: Mapping[str, Any]) -> list[str]:
    """All that is wrong with a RayJob by itself; empty if nothing is."""
    if (file.get("apiVersion"), file.get("kind")) != ("ray.io/v1", "RayJob"):
        return [
            f"it must be a RayJob of ray.io/v1, not {file.get('kind')} of {file.get('apiVersion')}"
        ]
    try:
        return [*_job_problems(file), *_cluster_problems(file["spec"]["rayClusterSpec"])]
    except (KeyError, TypeError, IndexError) as error:
        return [f"a part that a RayJob must have is missing or misplaced: {error!r}"]


def _job_problems(file: Mapping[str, Any]) -> Iterator[str]:
    spec = file["spec"]
    yield from _label_problems("metadata.name", file["metadata"]["name"])
    yield from _field_problems("spec", spec, JOB_FIELDS)
    if "jobs/run.py" not in spec.get("entrypoint", ""):
        yield "spec.entrypoint must run a job of LLKD, such as `python jobs/run.py CONFIG`"
    if not spec.get("shutdownAfterJobFinishes"):
        yield "spec.shutdownAfterJobFinishes must be true: else the cluster runs on after the job"


def _cluster_problems(cluster: Mapping[str, Any]) -> Iterator[str]:
    head, groups = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    yield from _field_problems("spec.rayClusterSpec", cluster, CLUSTER_FIELDS)
    yield from _field_problems("headGroupSpec", head, HEAD_FIELDS)
    if cluster.get("rayVersion") != ray.__version__:
        yield (
            f"rayVersion is {cluster.get('rayVersion')}, and LLKD was installed with Ray "
            f"{ray.__version__}: all must have the same"
        )
    if (cluster.get("authOptions") or {}).get("mode") != "token":
        yield "authOptions.mode must be token: else whoever reaches the head can run code there"
    if not cluster.get("enableInTreeAutoscaling"):
        yield "enableInTreeAutoscaling must be true: else groups stay at their replicas"
    if str((head.get("rayStartParams") or {}).get("num-cpus")) != "0":
        yield "headGroupSpec.rayStartParams.num-cpus must be '0', so that the head gets no work"
    images = {_container(group)["image"] for group in (head, *groups)}
    if len(images) > 1:
        yield f"all groups must have one image, not {sorted(images)}"
    for group in (head, *groups):
        yield from _pod_problems(group)
    for group in groups:
        yield from _group_problems(group)


def _group_problems(group: Mapping[str, Any]) -> Iterator[str]:
    name = group["groupName"]
    yield from _label_problems("groupName", name)
    yield from _field_problems(name, group, GROUP_FIELDS)
    fewest, most = group.get("minReplicas", 0), group.get("maxReplicas", MOST_REPLICAS)
    replicas = group.get("replicas", 0)
    if not fewest <= replicas <= most:
        yield (
            f"{name}: minReplicas ({fewest}) <= replicas ({replicas}) <= maxReplicas ({most}) "
            "must hold"
        )
    limits = _container(group)["resources"]["limits"]
    tolerated = {each.get("key") for each in group["template"]["spec"].get("tolerations", [])}
    if "gpu" in name and GPU not in limits:
        yield f"{name}: limits must have {GPU}: else its pods get no GPU"
    if GPU in limits and GPU not in tolerated:
        yield f"{name}: tolerations must have the key {GPU}: nodes with GPUs are often tainted so"


def _pod_problems(group: Mapping[str, Any]) -> Iterator[str]:
    """What every Ray pod needs: known resources, and shared memory for Ray's object store."""
    name, container = group.get("groupName", "headGroupSpec"), _container(group)
    yield from _label_problems(f"{name}: container name", container["name"])
    asked, limits = container["resources"]["requests"], container["resources"]["limits"]
    for resource in ("cpu", "memory"):
        if asked.get(resource) is None or asked.get(resource) != limits.get(resource):
            yield (
                f"{name}: {resource} must be requested and limited alike, for Ray counts the limit "
                f"(requests {asked.get(resource)}, limits {limits.get(resource)})"
            )
    in_memory = {
        volume["name"]
        for volume in group["template"]["spec"].get("volumes", [])
        if (volume.get("emptyDir") or {}).get("medium") == "Memory"
    }
    mounts = {each["mountPath"]: each["name"] for each in container.get("volumeMounts", [])}
    if mounts.get("/dev/shm") not in in_memory:
        yield f"{name}: /dev/shm must be a volume in memory: a pod has 64 MiB of it otherwise"


def _container(group: Mapping[str, Any]) -> Mapping[str, Any]:
    """The container that runs Ray: the first one."""
    first: Mapping[str, Any] = group["template"]["spec"]["containers"][0]
    return first


def _field_problems(where: str, section: Mapping[str, Any], known: set[str]) -> Iterator[str]:
    for name in sorted(set(section) - known):
        yield f"{where}: there is no field {name}"


def _label_problems(where: str, name: str) -> Iterator[str]:
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name):
        yield (
            f"{where} is {name!r}, which must be small letters, digits and `-`, with a letter or "
            "digit at both ends (DNS-1123)"
        )
