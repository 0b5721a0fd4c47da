"""Choices that depend on the machine, made once a run and kept with it.

What is fastest is found by timing, and a busy machine may answer otherwise the next time. A run
that was broken off must go on in the same number format, or its shards would not match.
"""

from collections.abc import Callable
from typing import Any

import ray

from llkd import runtime
from llkd.config import RunConfig, TeacherConfig
from llkd.schema import RunLayout
from llkd.storage import Folder
from llkd.teacher.engine import engine_class

SETTLED = "settled.json"


def settle(
    folder: Folder, decide: Callable[[], dict[str, Any]], resources: runtime.Resources
) -> dict[str, Any]:
    """What `decide` answered when it was first asked, on a node that has the resources."""
    found: dict[str, Any] | None = folder.read_json_if_there(SETTLED)
    if found is None:
        found = _asked(decide, resources)
        folder.write_json(SETTLED, found)
    return found


def settled_teacher(
    config: RunConfig, resources: runtime.Resources, keep: bool = True
) -> TeacherConfig:
    """The teacher with the engine arguments that its engine chose for this machine.

    Args:
        config: the run.
        resources: of a replica.
        keep: choose once for the run; else choose now and leave nothing behind.
    """
    teacher = config.teacher
    choose = getattr(engine_class(teacher.engine), "machine_arguments", None)
    if choose is None:
        return teacher

    def decide() -> dict[str, Any]:
        return dict(choose(teacher))

    folder = Folder(RunLayout(config.run_dir, config.teacher_number).teacher_choices)
    chosen = settle(folder, decide, resources) if keep else _asked(decide, resources)
    return teacher.model_copy(update={"engine_args": {**chosen, **teacher.engine_args}})


def _asked(decide: Callable[[], dict[str, Any]], resources: runtime.Resources) -> dict[str, Any]:
    if runtime.is_local():
        return decide()  # this is the machine
    task = ray.remote(decide).options(**runtime.options_of(resources))
    return dict(ray.get(task.remote()))


def settled_precision(config: RunConfig, resources: runtime.Resources) -> str:
    """`bfloat16` or `float32`, for the student's matrix products."""

    def decide() -> dict[str, Any]:
        import torch

        from llkd.student.model import use_bfloat16

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        bfloat16 = use_bfloat16(config.student.precision, device)
        return {"precision": "bfloat16" if bfloat16 else "float32"}

    return str(settle(Folder(RunLayout(config.run_dir).epochs), decide, resources)["precision"])
