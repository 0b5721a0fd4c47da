"""The number format of the student's matrix products."""

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
