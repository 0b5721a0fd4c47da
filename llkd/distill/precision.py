"""The number format of the student's matrix products, and the resources of a student that only scores."""

from typing import Any

from llkd.cluster import connection
from llkd.cluster.machine import choose_once
from llkd.config.run import RunConfig
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout


def chosen_precision(config: RunConfig, resources: connection.Resources) -> str:
    """`bfloat16` or `float32`: chosen once per run, for all later stages."""

    def decide() -> dict[str, Any]:
        import torch

        from llkd.student.model import use_bfloat16

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        bfloat16 = use_bfloat16(config.student.precision, device)
        return {"precision": "bfloat16" if bfloat16 else "float32"}

    folder = Folder(RunLayout(config.run_dir).epochs)
    return str(choose_once(folder, decide, resources)["precision"])


def scoring_resources(config: RunConfig) -> connection.Resources:
    """The resources that one replica of a student reserves: `predict.resources`, or its default.

    Raises:
        ResourceError: no node has them.
    """
    resources = config.predict.resources
    if resources is None:
        if connection.cluster_has_gpus("predict.resources"):
            resources = {"GPU": 1.0}
        else:
            resources = {"CPU": connection.cpus_each(config.predict.replicas[1])}
    connection.require_resources(resources, "predict.resources")
    return resources


def alone_on_cpus() -> bool:
    """Whether this process may score: on its own local Ray the CPUs are idle between two stages. On a
    GPU it would keep memory that the next stage needs."""
    return connection.is_local() and not connection.cluster_has_gpus("predict.resources")
