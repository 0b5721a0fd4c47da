"""All uses of Ray without a public interface, in one place for a new release of Ray to break.

No other module of LLKD imports a private module or name of Ray; tests/cluster/test_ray_internals.py
enforces that, and tries each function against the installed Ray. Imports are inside the functions
where Ray's module is slow to load or reads the environment.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

JOB_CONFIG_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The environment variable by which `ray job submit` gives a driver its runtime environment."""

NAMESPACE_PREFIX = "_ray_internal_"
"""Prefix of the namespaces of jobs that Ray itself starts."""


def declared_node_types() -> list[dict[str, float]]:
    """Resources of the node types that the cluster's autoscaler declares. Those of `ray up` and KubeRay
    declare none in Ray 2.60."""
    from ray._private.state import state

    config = state.get_cluster_config()
    groups = config.node_group_configs if config else []
    return [dict(group.resources) for group in groups]


def is_autoscaler_v2() -> bool:
    """Whether version 2 of the autoscaler runs, which KubeRay enables."""
    from ray.autoscaler.v2.utils import is_autoscaler_v2 as is_v2

    return bool(is_v2())


def autoscaler_status() -> bytes | None:
    """The last report of the cluster's monitor, as JSON; None before the first."""
    from ray.experimental.internal_kv import _internal_kv_get

    status: bytes | None = _internal_kv_get("__autoscaling_status")
    return status


def actors_of_job(job_id: str) -> list[dict[str, Any]]:
    """`State`, `Name`, `ActorClassName` and more of each actor of a job, including dead ones. The public
    listing needs a dashboard, which a local Ray does not have."""
    import ray
    from ray._private.state import actors

    return list(actors(job_id=ray.JobID.from_hex(job_id)).values())


def running_jobs() -> dict[str, str]:
    """The entrypoint of each running job of the cluster, by its id, except Ray's own."""
    from ray._private.worker import global_worker

    jobs = global_worker.gcs_client.get_all_job_info(
        skip_submission_job_info_field=True, skip_is_running_tasks_field=True
    )
    return {
        job.hex(): info.entrypoint
        for job, info in jobs.items()
        if not info.is_dead and not info.config.ray_namespace.startswith(NAMESPACE_PREFIX)
    }


def launcher_config(file: Mapping[str, Any]) -> dict[str, Any]:
    """A file of Ray's cluster launcher with Ray's defaults, validated as by `ray up`.

    Raises:
        Exception: of many classes; Ray refuses the file.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(copy.deepcopy(dict(file)))
    validate_config(config)
    return config


def kuberay_config(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a KubeRay cluster's autoscaler derives from the spec of a RayCluster.

    Raises:
        Exception: of many classes; Ray cannot read the spec.
    """
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _derive_autoscaling_config_from_ray_cr,
    )

    metadata = {"name": "llkd", "namespace": "default"}
    return dict(_derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": cluster}))


class TorchBackend(NamedTuple):
    """How Ray Train starts a process group of torch."""

    base: Any
    """The class of the backend, which also ends the group."""
    set_environment: Callable[[], None]
    """Sets RANK, LOCAL_RANK and so on in a worker."""
    set_up_group: Callable[..., Any]
    """Joins a worker to the group."""


def torch_backend() -> TorchBackend:
    """Ray Train's backend; imports torch."""
    from ray.train.torch.config import (
        _set_torch_distributed_env_vars,
        _setup_torch_process_group,
        _TorchBackend,
    )

    return TorchBackend(_TorchBackend, _set_torch_distributed_env_vars, _setup_torch_process_group)
