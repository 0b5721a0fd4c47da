"""Checks a run's inputs and resources before it starts, so that it does not fail hours later."""

import os

from llkd.cluster import connection
from llkd.cluster.environment import ADDRESS_VARIABLE
from llkd.config.packages import require_packages
from llkd.config.run import RunConfig, TeacherConfig
from llkd.config.section import DATASETS_PREFIX
from llkd.config.sources import section_of
from llkd.distill.policy import policy_of
from llkd.distill.stage import worker_resources
from llkd.ingest.files import list_files
from llkd.ingest.sources import check_columns
from llkd.results.hub import require_hub
from llkd.store.folder import Folder
from llkd.store.manifest import is_complete
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
    require_installed(stage, config)
    if stage == "sample":
        _require_source(config, "corpus")
    if stage in ("ingest", "run"):
        for dataset in config.datasets:
            _require_source(config, dataset)
    if stage == "predict" and config.predict.path is not None:
        _require_source(config, config.predict.dataset)
    if stage == "export" and config.export.push_to_hub:
        require_hub()
    if _loads_teacher(stage, config):
        for teacher in config.all_teachers:
            require_teacher(teacher)
    if _trains_student(stage, config) or stage in ("sample", "review"):
        require_model(config.student.model, "student.model")
    if stage in ("distill", "run", "plan") or (stage == "label" and config.label.in_part):
        policy_of(config)


def require_installed(stage: str, config: RunConfig) -> None:
    """Check the optional packages that a command needs under its settings.

    Raises:
        ConfigError: one is not installed; names the setting and the extra.
    """
    if stage == "export" and config.export.onnx:
        require_packages(
            "export.onnx", "onnx", "onnxscript", "onnxruntime", extra="onnx",
            otherwise="set export.onnx to false",
        )  # fmt: skip
    if stage in ("distill", "evaluate", "run"):
        for name in config.tracking.trackers:  # named like their packages
            require_packages(
                f"tracking.{name}", name, extra="tracking", otherwise=f"set tracking.{name} to null"
            )
    if os.environ.get(ADDRESS_VARIABLE):
        return  # models are loaded on the nodes of the cluster, whose packages may differ
    if _loads_teacher(stage, config):
        for teacher in config.all_teachers:
            _require_engine(teacher)
    if _trains_student(stage, config) and config.student.lora is not None:
        require_packages("student.lora", "peft", extra="lora", otherwise="set student.lora to null")


def _require_engine(teacher: TeacherConfig) -> None:
    """Check the packages that a teacher's engine imports."""
    if teacher.engine == "vllm":
        require_packages(
            "teacher.engine: vllm",
            "vllm",
            extra="gpu",
            otherwise="'.[cpu]' on a machine without GPUs",
        )
    if teacher.engine == "transformers" and teacher.lora is not None:
        require_packages("teacher.lora", "peft", extra="lora", otherwise="set teacher.lora to null")
    if teacher.engine == "transformers" and "gguf_file" in teacher.engine_args:
        require_packages("teacher.engine_args.gguf_file", "gguf", extra="demo")


def _loads_teacher(stage: str, config: RunConfig) -> bool:
    """Whether a command loads the teachers; a plan does not if it is given their throughput."""
    if stage == "plan":
        return config.plan.teacher_rows_per_second is None
    return stage in ("label", "run", "compare") and needs_teacher(config)


def _trains_student(stage: str, config: RunConfig) -> bool:
    """Whether a command trains the student; a plan does not if it is given its throughput."""
    if stage == "plan":
        return config.plan.score_rows_per_second is None
    if stage == "compare":
        return True  # in run directories of its own
    in_rounds = stage == "label" and config.label.in_part
    return (stage in ("distill", "run") or in_rounds) and needs_student(config)


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
    return not all(is_complete(Folder(layout.labels(dataset))) for dataset in config.datasets)


def needs_student(config: RunConfig) -> bool:
    """Whether the student has yet to be trained."""
    return not Folder(RunLayout(config.run_dir).student).names()


def _require_source(config: RunConfig, dataset: str) -> None:
    """Check that a data set's files exist and that the first has the columns.

    Skipped once they are ingested: users need not keep them.
    """
    source = config.source(dataset)
    assert source is not None
    if is_complete(Folder(RunLayout(config.run_dir).rows(dataset))):
        return
    if any(path.startswith(DATASETS_PREFIX) for path in source.paths):
        return  # slow to load: left to ingest
    section = section_of(dataset)
    check_columns(list_files(source, section)[0], source, section)
