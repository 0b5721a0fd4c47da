"""What a whole run will take, from a sample of the corpus, before money is spent.

A sample of rows is labelled by one replica, and scored and trained on by one student, as the stages
would do it; the rest is worked out (llkd/lab/cost_model.py). Nothing of it is kept.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from llkd.cluster import actor_pool, connection
from llkd.config.run import RunConfig
from llkd.config.sources import SourceConfig
from llkd.distill.policy import policy_of
from llkd.ingest.sources import count_rows, list_files
from llkd.lab.cost_model import Setup, estimate, selected_shares
from llkd.lab.plan_sample import PlanActor, Sample, sample_rows, stored_bytes
from llkd.lab.plan_shown import show_estimate, show_plan
from llkd.lab.plan_student import StudentSample, measure_student
from llkd.teacher.examples import with_drawn_examples
from llkd.teacher.machine_arguments import with_machine_arguments
from llkd.teacher.stage import default_resources


def run_plan(config: RunConfig, console: Console) -> dict[str, Any]:
    """Label a sample with each teacher, train a student on it, and print what the whole run would
    take; returns that as plain values, see Estimate.to_json."""
    config = with_drawn_examples(config)
    plan = config.plan
    total, sampled = sample_rows(config.corpus, plan.rows, config.seed)
    rows = total if plan.corpus_rows is None else int(plan.corpus_rows)
    extrapolated = f"; told for {rows:,}" if rows != total else ""
    console.print(f"Corpus    {total:,} rows; {len(sampled)} of them sampled{extrapolated}")
    each = config.of_each_teacher or [config]
    speeds = [_measure_teacher(alone, sampled, rows, console) for alone in each]
    texts = [text for text, _ in sampled]
    if plan.score_rows_per_second is None or plan.train_rows_per_second is None:
        student = measure_student(config, texts)
    else:
        student = StudentSample(plan.score_rows_per_second, plan.train_rows_per_second, 0.0, 0)
    setup = setup_of(config, rows, speeds, student, stored_bytes(sampled, config))
    found = estimate(setup)
    show_estimate(found, console)
    return found.to_json()


@dataclass(frozen=True)
class TeacherSpeed:
    """Of one of the teachers."""

    rate: float
    """Rows a second of a replica."""
    replicas: int
    tokens: float
    """Of a prompt; 0 where they are not known."""
    gpus: float = 0.0
    """That a replica holds, on all its nodes."""


def _measure_teacher(
    config: RunConfig, sampled: list[tuple[str, str | None]], total: int, console: Console
) -> TeacherSpeed:
    """Label the sample, unless the speed is given, and print what it told."""
    replicas, nodes = config.teacher.replicas[1], config.teacher.nodes
    resources = config.teacher.resources or default_resources(config)
    gpus = resources.get("GPU", 0) * nodes
    if config.plan.teacher_rows_per_second is not None:
        return TeacherSpeed(config.plan.teacher_rows_per_second, replicas, 0.0, gpus)
    connection.require_resources(resources, "teacher.resources", nodes)
    teacher = with_machine_arguments(config, resources, keep=False)
    config = config.model_copy(update={"teacher": teacher})
    (found,) = actor_pool.run_on_actors(
        PlanActor, (config,), [sampled], pool=(1, 1), resources=resources,
        nodes=nodes,
    )  # fmt: skip
    sample = Sample(**found)
    show_plan(config, sample, total, console)
    tokens = statistics.mean(sample.prompt_tokens) if sample.prompt_tokens else 0.0
    return TeacherSpeed(sample.rows / sample.seconds, replicas, tokens, gpus)


def setup_of(
    config: RunConfig,
    rows: int,
    speeds: Sequence[TeacherSpeed],
    student: StudentSample,
    text_bytes: float,
) -> Setup:
    """What the model of a run has to know.

    Args:
        config: the run.
        rows: of the corpus.
        speeds: of each teacher.
        student: what the sample told of it.
        text_bytes: stored bytes of a row.
    """
    policy, selection, plan = policy_of(config), config.selection, config.plan
    epochs = config.student.epochs
    # Several teachers label one after another.
    replicas = max(speed.replicas for speed in speeds)
    seconds = sum(1 / (speed.rate * speed.replicas) for speed in speeds)
    gpus = sum(speed.gpus / speed.rate for speed in speeds) / (seconds * replicas)
    selected = selected_shares(
        selection.policy, epochs, warmup=selection.warmup_epochs, fraction=selection.fraction,
        parts=selection.parts, keep=selection.keep,
    )  # fmt: skip
    if plan.selected_fraction is not None:
        selected = (plan.selected_fraction,) * epochs
    targets = config.student.loss.uses_targets
    return Setup(
        rows=rows,
        rows_per_shard=config.corpus.rows_per_shard,
        classes=len(config.task.labels),
        teachers=len(speeds),
        teacher_rate=1 / (seconds * replicas),
        teacher_replicas=replicas,
        teacher_gpus=gpus or 1.0,
        prompt_tokens=statistics.mean(speed.tokens for speed in speeds),
        epochs=epochs,
        score_rate=student.score_rate,
        train_rate=student.train_rate,
        workers=config.student.most_workers,
        predict_replicas=config.predict.replicas[1],
        student_tokens=student.tokens,
        student_parameters=student.parameters,
        scores=policy.uses_uncertainty,
        selected=selected,
        labels_kept=policy.uses_teacher_probs or targets,
        targets_kept=targets,
        student_distributions=policy.uses_student_probs,
        probabilities=config.predict.probabilities,
        budget=config.label.budget,
        rounds=config.label.rounds,
        first=config.label.first if config.label.rounds > 1 else 1.0,
        gold=config.corpus.label_column is not None,
        test_rows=_rows_of(config.test, "test"),
        text_bytes=text_bytes,
        on_gpus=gpus > 0 or connection.cluster_has_gpus("teacher.resources"),
        cpus=plan.cpus or max(int(sum(node.get("CPU", 0) for node in connection.nodes())), 1),
        price=plan.price_per_hour,
        cpu_price=plan.cpu_price_per_hour,
    )


def _rows_of(source: SourceConfig | None, setting: str) -> int:
    if source is None:
        return 0
    return sum(count_rows(file, source) for file in list_files(source, setting))
