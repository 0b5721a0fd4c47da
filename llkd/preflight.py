"""Checks a run's inputs and resources before it starts, so that it does not fail hours later."""

from llkd.cluster import connection
from llkd.config.run import RunConfig
from llkd.config.section import DATASETS_PREFIX
from llkd.config.sources import section_of
from llkd.distill.policy import policy_of
from llkd.distill.stage import worker_resources
from llkd.ingest.files import list_files
from llkd.ingest.sources import check_columns
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
    """Check the files and model directories that a command has yet to read.

    Needs no Ray, so that a mistyped name is reported within a second.

    Raises:
        DataError: a file is missing, or lacks a column.
        ConfigError: a model directory is missing or incomplete, a setting needs a missing package
            or token, or the policy does not exist.
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
        for teacher in config.all_teachers:
            require_teacher(teacher)
    if stage in ("distill", "evaluate", "run"):
        require_trackers(config)
    if stage in ("distill", "run") and needs_student(config):
        require_model(config.student.model, "student.model")
    if stage in ("distill", "run", "plan") or (stage == "label" and config.label.in_part):
        policy_of(config)


def _require_export(config: RunConfig) -> None:
    """Check the packages and the token that the export needs."""
    if config.export.onnx:
        require_onnx()
    if config.export.push_to_hub:
        require_hub()


def _require_planned(config: RunConfig) -> None:
    """Check the models that a plan measures; those with a given throughput are not loaded."""
    if config.plan.teacher_rows_per_second is None:
        for teacher in config.all_teachers:
            require_teacher(teacher)
    if config.plan.score_rows_per_second is None:
        require_model(config.student.model, "student.model")


def require_room(config: RunConfig) -> None:
    """Check that the cluster can provide the resources for labelling and training.

    Raises:
        ResourceError: it never can; names the setting.
    """
    if needs_teacher(config):
        for alone in config.of_each_teacher or [config]:
            resources = alone.teacher.resources or default_resources(alone)
            connection.require_resources(resources, "teacher.resources", alone.teacher.nodes)
    if needs_student(config):
        worker_resources(config)


def needs_teacher(config: RunConfig) -> bool:
    """Whether labelling is incomplete."""
    layout = RunLayout(config.run_dir)
    return not all(_complete(layout.labels(dataset)) for dataset in config.datasets)


def needs_student(config: RunConfig) -> bool:
    """Whether the student has yet to be trained."""
    return not Folder(RunLayout(config.run_dir).student).names()


def _require_source(config: RunConfig, dataset: str) -> None:
    """Check that a data set's files exist and that the first has the columns.

    Skipped once they are ingested: users need not keep them.
    """
    source = config.source(dataset)
    assert source is not None
    if _complete(RunLayout(config.run_dir).rows(dataset)):
        return
    if any(path.startswith(DATASETS_PREFIX) for path in source.paths):
        return  # slow to load: left to ingest
    section = section_of(dataset)
    check_columns(list_files(source, section)[0], source, section)


def _complete(uri: str) -> bool:
    manifest = read_manifest(Folder(uri))
    return manifest is not None and manifest.complete
