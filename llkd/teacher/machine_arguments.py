"""Engine arguments that an engine chooses for its machine."""

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
    """The teacher, completed by the engine arguments that its engine chooses for the machine.

    Args:
        config: the run; its own engine arguments take precedence.
        resources: of one replica.
        keep: choose once for the whole run and store the choice; else choose now.
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
