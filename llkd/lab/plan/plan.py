"""The plan: one replica labels a sample, one worker scores it and trains on it, and the cost model
extrapolates (llkd/lab/cost_model.py). Nothing is kept.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console

from llkd.cluster import connection
from llkd.config.run import RunConfig
from llkd.config.sources import SourceConfig
from llkd.ingest.files import list_files
from llkd.ingest.sources import count_rows
from llkd.lab.cost_model import Estimate, Workload
from llkd.lab.plan.show import show_estimate, show_teacher
from llkd.lab.plan.student import StudentSample, measure_student
from llkd.lab.plan.teacher import SampledRow, measure_teacher, sample_rows, stored_bytes
from llkd.teacher.engine import require_label_mass
from llkd.teacher.examples import with_drawn_examples
from llkd.teacher.stage import default_resources


def run_plan(config: RunConfig, console: Console) -> dict[str, Any]:
    """Measure a sample with each teacher and the student, and print an estimate of the whole run.

    Returns:
        The estimate as plain values; see Estimate.to_json.
    """
    config = with_drawn_examples(config)
    plan = config.plan
    total, sampled = sample_rows(config.corpus, plan.rows, config.seed)
    rows = total if plan.corpus_rows is None else int(plan.corpus_rows)
    extrapolated = f"; extrapolated to {rows:,}" if rows != total else ""
    console.print(f"Corpus    {total:,} rows; {len(sampled)} of them sampled{extrapolated}")
    teachers = [
        teacher_speed(alone, sampled, console) for alone in config.of_each_teacher or [config]
    ]
    if plan.score_rows_per_second is None or plan.train_rows_per_second is None:
        student = measure_student(config, [row.text for row in sampled])
    else:
        student = StudentSample(plan.score_rows_per_second, plan.train_rows_per_second, 0.0, 0)
    workload = workload_of(config, rows, teachers, student, stored_bytes(sampled, config))
    estimate = Estimate(config, workload)
    show_estimate(estimate, console)
    return estimate.to_json()


@dataclass(frozen=True)
class TeacherSpeed:
    """Throughput of one teacher."""

    rate: float
    """Rows a second of a replica."""
    replicas: int
    tokens: float
    """Mean tokens of a prompt; 0 if unknown."""
    gpus: float = 0.0
    """GPUs of a replica, on all its nodes."""


def teacher_speed(
    config: RunConfig, sampled: Sequence[SampledRow], console: Console
) -> TeacherSpeed:
    """The throughput that the config states; otherwise label the sample and print its results.

    Raises:
        TeacherError: the teacher hardly answers with the labels.
    """
    replicas, plan = config.teacher.replicas[1], config.plan
    resources = config.teacher.resources or default_resources(config)
    gpus = resources.get("GPU", 0) * config.teacher.nodes
    if plan.teacher_rows_per_second is not None:
        return TeacherSpeed(plan.teacher_rows_per_second, replicas, 0.0, gpus)
    sample = measure_teacher(config, sampled, resources)
    show_teacher(config, sample, console)
    if sample.logprobs_nc:
        require_label_mass(config.teacher, np.array(sample.logprobs_nc))
    tokens = statistics.mean(sample.prompt_tokens) if sample.prompt_tokens else 0.0
    return TeacherSpeed(sample.rows / sample.seconds, replicas, tokens, gpus)


def workload_of(
    config: RunConfig,
    rows: int,
    teachers: Sequence[TeacherSpeed],
    student: StudentSample,
    text_bytes: float,
) -> Workload:
    """The measurements for the cost model.

    Args:
        config: the run.
        rows: of the corpus.
        teachers: their throughput; they label one after another.
        student: its throughput.
        text_bytes: stored bytes of a row.
    """
    replicas = max(teacher.replicas for teacher in teachers)
    seconds = sum(1 / (teacher.rate * teacher.replicas) for teacher in teachers)
    gpus = sum(teacher.gpus / teacher.rate for teacher in teachers) / (seconds * replicas)
    cpus = sum(node.get("CPU", 0) for node in connection.nodes())
    return Workload(
        rows=rows,
        test_rows=_rows_of(config.test, "test"),
        text_bytes=text_bytes,
        teacher_rate=1 / (seconds * replicas),
        teacher_replicas=replicas,
        teacher_gpus=gpus or 1.0,
        prompt_tokens=statistics.mean(teacher.tokens for teacher in teachers),
        **asdict(student),
        on_gpus=gpus > 0 or connection.cluster_has_gpus("teacher.resources"),
        cpus=config.plan.cpus or max(int(cpus), 1),
    )


def _rows_of(source: SourceConfig | None, setting: str) -> int:
    if source is None:
        return 0
    return sum(count_rows(file, source) for file in list_files(source, setting))
