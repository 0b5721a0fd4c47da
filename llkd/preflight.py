"""What a run needs beside time: looked for before the hours that it would cost to find out."""

from llkd.cluster import connection
from llkd.config.run import RunConfig
from llkd.config.sources import section_of
from llkd.distill.policy import policy_of
from llkd.distill.stage import worker_resources
from llkd.ingest.sources import DATASETS_PREFIX, check_columns, list_files
from llkd.results.hub import require_hub
from llkd.results.onnx import require_onnx
from llkd.results.tracking import require_trackers
from llkd.store.folder import Folder
from llkd.store.manifest import read_manifest
from llkd.store.model_files import require_model
from llkd.store.schema import RunLayout
from llkd.teacher.engine import require_teacher
from llkd.teacher.stage import default_resources


def require_inputs(stage: str, config: RunConfig) -> None:
    """See that the files and the model directories are there that a command still has to read.
    Needs no Ray, so that a mistyped name is told in a second.

    Raises:
        DataError: a file is missing, or lacks a column.
        ConfigError: a model's directory is missing, or lacks something; a package or a token that
            a setting needs is not there; there is no such policy.
    """
    if stage in ("ingest", "run"):
        for dataset in config.datasets:
            _require_source(config, dataset)
    if stage == "predict" and config.predict.path is not None:
        _require_source(config, config.predict.dataset)
    if stage == "plan":
        _require_planned(config)
    if stage == "export":
        _require_export(config)
    if stage in ("label", "run") and needs_teacher(config):
        for teacher in config.teachers or (config.teacher,):
            require_teacher(teacher)
    if stage in ("distill", "evaluate", "run"):
        require_trackers(config)
    if stage in ("distill", "run") and needs_student(config):
        require_model(config.student.model, "student.model")
    if stage in ("distill", "run", "plan") or (stage == "label" and config.label.in_part):
        policy_of(config)


def _require_export(config: RunConfig) -> None:
    """The packages and the token that it will ask for."""
    if config.export.onnx:
        require_onnx()
    if config.export.push_to_hub:
        require_hub()


def _require_planned(config: RunConfig) -> None:
    """The models that a plan measures; those whose rates it is given need not be there."""
    if config.plan.teacher_rows_per_second is None:
        for teacher in config.teachers or (config.teacher,):
            require_teacher(teacher)
    if config.plan.score_rows_per_second is None:
        require_model(config.student.model, "student.model")


def require_room(config: RunConfig) -> None:
    """See that the cluster can hold what labelling and training will ask for.

    Raises:
        ResourceError: it never can, naming the setting.
    """
    if needs_teacher(config):
        for alone in config.of_each_teacher or [config]:
            resources = alone.teacher.resources or default_resources(alone)
            connection.require_resources(resources, "teacher.resources", alone.teacher.nodes)
    if needs_student(config):
        worker_resources(config)


def needs_teacher(config: RunConfig) -> bool:
    """Whether there are rows to label."""
    layout = RunLayout(config.run_dir)
    return not all(_complete(layout.labels(dataset)) for dataset in config.datasets)


def needs_student(config: RunConfig) -> bool:
    """Whether there is a student to train."""
    return not Folder(RunLayout(config.run_dir).student).names()


def _require_source(config: RunConfig, dataset: str) -> None:
    """See that its files are there, and that the first has the columns; not where they have been
    read, for nobody has to keep them."""
    source = config.source(dataset)
    assert source is not None
    if _complete(RunLayout(config.run_dir).rows(dataset)):
        return
    if any(path.startswith(DATASETS_PREFIX) for path in source.paths):
        return  # loading it takes long: ingest says what is wrong
    section = section_of(dataset)
    check_columns(list_files(source, section)[0], source, section)


def _complete(uri: str) -> bool:
    manifest = read_manifest(Folder(uri))
    return manifest is not None and manifest.complete
