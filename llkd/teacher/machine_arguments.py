"""The engine arguments that an engine chooses for the machine it runs on."""

from typing import Any

from llkd.cluster import connection
from llkd.cluster.machine import choose, choose_once
from llkd.config.run import RunConfig, TeacherConfig
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout
from llkd.teacher.engine import engine_class


def with_machine_arguments(
    config: RunConfig, resources: connection.Resources, keep: bool = True
) -> TeacherConfig:
    """The teacher with the engine arguments that its engine chose for this machine.

    Args:
        config: the run.
        resources: of a replica.
        keep: choose once for the run; else choose now and store nothing.
    """
    teacher = config.teacher
    machine_arguments = getattr(engine_class(teacher.engine), "machine_arguments", None)
    if machine_arguments is None:
        return teacher

    def decide() -> dict[str, Any]:
        return dict(machine_arguments(teacher))

    folder = Folder(RunLayout(config.run_dir, config.teacher_number).teacher_choices)
    chosen = choose_once(folder, decide, resources) if keep else choose(decide, resources)
    return teacher.model_copy(update={"engine_args": {**chosen, **teacher.engine_args}})
