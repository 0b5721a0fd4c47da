"""What a whole run will take, from a sample of the corpus, before money is spent.

A sample of rows is labelled by one replica, and scored and trained on by one student, as the stages
would do it; the rest is worked out (llkd/scale_model.py). Nothing of it is kept.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llkd import pools, runtime
from llkd.config import RunConfig
from llkd.config_file import portable_path
from llkd.config_sources import SourceConfig
from llkd.core.calibration import Calibration, fit_batch_bias, marginal
from llkd.errors import DataError
from llkd.plan_student import StudentSample, measure_student
from llkd.progress import duration
from llkd.scale_model import (
    CORPUS_FIXED,
    Estimate,
    Setup,
    estimate,
    selected_shares,
    shards_advice,
)
from llkd.schema import corpus_schema, shard_name
from llkd.scratch import scratch_folder
from llkd.selection import policy_of
from llkd.settled import settled_teacher
from llkd.sources import as_text, check_columns, count_rows, list_files, read_rows
from llkd.stages.label import default_resources
from llkd.storage import Folder
from llkd.teacher.engine import engine_class

BLOCKS = 16
"""Places of the corpus from which rows are sampled."""
SHOWN_PROMPTS = 2
BAR = 32
"""Characters of the longest bar."""
ONE_LABEL_SHARE = 0.8
LOW_MASS = 0.5
MOST_CUT = 0.5


@dataclass(frozen=True)
class Sample:
    """What the sample told; plain values, for it crosses Ray."""

    rows: int
    refused: int
    seconds: float
    logprobs_nc: list[list[float]]
    prompts: list[str]
    verbalizer: str
    prompt_tokens: list[int]
    """Tokens of each prompt; empty where the engine's tokenizer is not known."""
    text_tokens: list[int]
    """Tokens of each text before it is cut."""
    most_text_tokens: int
    computed_tokens: int
    """Tokens of all prompts beside the shared beginning, which is computed once."""


class PlanActor:
    """One replica, and the sample."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._engine = engine_class(config.teacher.engine)(config.teacher, config.task)

    def __call__(self, sampled: list[tuple[str, str | None]]) -> dict[str, Any]:
        """Label the sample, pairs of text and id."""
        engine, texts = self._engine, [text for text, _ in sampled]
        ids = [own for _, own in sampled]
        started = time.perf_counter()
        batch = engine.label(texts, ids, lambda done: None)
        seconds = time.perf_counter() - started
        kept = [i for i in range(len(texts)) if i not in batch.refused]
        told = _prompts(self._config, engine, texts)
        return {
            "rows": len(texts),
            "refused": len(batch.refused),
            "seconds": seconds,
            "logprobs_nc": batch.logprobs_nc[kept].tolist(),
            **told,
        }


def _prompts(config: RunConfig, engine: Any, texts: list[str]) -> dict[str, Any]:
    prompter = getattr(engine, "prompter", None)
    if prompter is None:
        return {
            "prompts": [], "verbalizer": "the engine's own", "prompt_tokens": [],
            "text_tokens": [], "most_text_tokens": config.teacher.max_text_tokens,
            "computed_tokens": 0,
        }  # fmt: skip
    most = engine.max_model_len
    prompts = [prompt or [] for prompt in prompter.prompts(texts, most)]
    before, _ = prompter.fixed
    asked = prompter.verbalizer.questions
    room = min(config.teacher.max_text_tokens, prompter.room(most))
    whole = prompter.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
    return {
        "prompts": [prompter.tokenizer.decode(prompt) for prompt in prompts[:SHOWN_PROMPTS]],
        "verbalizer": f"{prompter.verbalizer.name} ({prompter.reason}), "
        f"{len(asked)} {'question' if len(asked) == 1 else 'questions'} a row",
        "prompt_tokens": [len(prompt) for prompt in prompts],
        "text_tokens": [len(tokens) for tokens in whole["input_ids"]],
        "most_text_tokens": room,
        "computed_tokens": sum(max(len(prompt) - len(before), 0) for prompt in prompts),
    }


def run_plan(config: RunConfig, console: Console) -> dict[str, Any]:
    """Label a sample with each teacher, train a student on it, and print what the whole run would
    take; returns that as plain values, see Estimate.to_json."""
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


def _measure_teacher(
    config: RunConfig, sampled: list[tuple[str, str | None]], total: int, console: Console
) -> TeacherSpeed:
    """Label the sample, unless the speed is given, and print what it told."""
    replicas = config.teacher.replicas[1]
    if config.plan.teacher_rows_per_second is not None:
        return TeacherSpeed(config.plan.teacher_rows_per_second, replicas, 0.0)
    resources = config.teacher.resources or default_resources(config)
    runtime.require_resources(resources, "teacher.resources", config.teacher.nodes)
    teacher = settled_teacher(config, resources, keep=False)
    config = config.model_copy(update={"teacher": teacher})
    (found,) = pools.run_on_actors(
        PlanActor, (config,), [sampled], pool=(1, 1), resources=resources,
        nodes=config.teacher.nodes,
    )  # fmt: skip
    sample = Sample(**found)
    show_plan(config, sample, total, console)
    tokens = statistics.mean(sample.prompt_tokens) if sample.prompt_tokens else 0.0
    return TeacherSpeed(sample.rows / sample.seconds, replicas, tokens)


def stored_bytes(sampled: list[tuple[str, str | None]], config: RunConfig) -> float:
    """Bytes of a row of the sample, as a shard of the corpus has them."""
    with_id = config.corpus.id_column is not None
    columns: dict[str, Any] = {"row": range(len(sampled)), "text": [text for text, _ in sampled]}
    if with_id:
        columns["id"] = [own for _, own in sampled]
    with scratch_folder() as directory:
        folder = Folder(str(directory))
        folder.write_shard(0, pa.table(columns, schema=corpus_schema(with_id, False)))
        size = folder.size(shard_name(0)) or 0
    return max(size - CORPUS_FIXED, 1) / len(sampled)


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
        on_gpus=runtime.cluster_has_gpus("teacher.resources"),
        cpus=plan.cpus or max(int(sum(node.get("CPU", 0) for node in runtime.nodes())), 1),
        price=plan.price_per_hour,
        cpu_price=plan.cpu_price_per_hour,
    )


def _rows_of(source: SourceConfig | None, setting: str) -> int:
    if source is None:
        return 0
    return sum(count_rows(file, source) for file in list_files(source, setting))


def show_estimate(found: Estimate, console: Console) -> None:
    """Print a table of the stages, and what the run takes beside them."""
    setup = found.setup
    table = Table(title=f"A whole run, {setup.rows:,} rows", title_justify="left")
    for column in ("stage", "rows", "tokens", "on", "rows/s each", "time", "cost", "files",
                   "stored", "requests"):  # fmt: skip
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in found.stages:
        table.add_row(
            stage.name, short(stage.rows), short(stage.tokens), f"{stage.workers} {stage.on}",
            short(stage.rate), duration(stage.seconds), _money(stage.cost), short(stage.files),
            f"{short(stage.bytes)}B" if stage.bytes else "", short(stage.reads + stage.writes),
        )  # fmt: skip
    table.add_section()
    requests = found.total("reads") + found.total("writes")
    table.add_row(
        "all", "", short(found.total("tokens")), "", "", duration(found.total("seconds")),
        _money(found.cost), short(found.total("files")), f"{short(found.total('bytes'))}B",
        short(requests),
    )  # fmt: skip
    console.print()
    console.print(table)
    console.print(
        f"Shards    {setup.shards:,} of {setup.rows_per_shard:,} rows; the driver takes "
        f"{duration(found.driver_seconds)} of a CPU and {found.driver_mib:,.0f} MiB"
    )
    if setup.student_parameters:
        # Weights and two moments of each, in float32; then the weights alone.
        size = setup.student_parameters * 4
        console.print(f"Student   {short(size)}B, a checkpoint {short(3 * size)}B")
    console.print(
        "Left out  engines and workers that start, models that load: minutes, whatever the corpus"
    )
    if advice := shards_advice(setup):
        console.print(f"[bold yellow]Warning[/]   {escape(advice)}")


def short(value: float) -> str:
    """A number of three digits and a thousand's letter; empty for 0."""
    if not value:
        return ""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.3g} {letter}"
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"


def _money(cost: float | None) -> str:
    return "" if cost is None else f"{cost:,.2f}"


def sample_rows(
    source: SourceConfig, rows: int, seed: int
) -> tuple[int, list[tuple[str, str | None]]]:
    """(rows of the corpus, text and id of about so many of them), from places spread by seed.

    Raises:
        DataError: the corpus cannot be read, or no sampled row holds text.
    """
    files = list_files(source, "corpus")
    for file in files:
        check_columns(file, source, "corpus")
    counts = [count_rows(file, source) for file in files]
    total = sum(counts)
    starts = np.cumsum([0, *counts])
    length = -(-rows // BLOCKS)
    random = np.random.default_rng(seed)
    found: dict[str, str | None] = {}
    for place in sorted(random.choice(max(total - length, 0) + 1, BLOCKS).tolist()):
        number = int(np.searchsorted(starts, place, side="right")) - 1
        first = place - int(starts[number])
        stop = min(first + length, counts[number])
        for row in read_rows(files[number], source, first, stop):
            text = as_text(row.text)
            if text and text.strip():
                found[text] = as_text(row.id)
    if not found:
        raise DataError(f"corpus.path: no sampled row of {source.path} holds text")
    return total, list(found.items())[:rows]


def show_plan(config: RunConfig, sample: Sample, total: int, console: Console) -> None:
    """Print it."""
    say = console.print
    for number, prompt in enumerate(sample.prompts):
        say(f"\n[bold]Prompt {number + 1}[/]")
        say(escape(prompt), markup=True)
    say()
    say(f"Teacher   {escape(portable_path(config.teacher.model))}")
    say(f"Labels    said by {escape(sample.verbalizer)}")
    if sample.prompt_tokens:
        say(f"Prompts   {_spread(sample.prompt_tokens)} tokens")
        say(
            f"Texts     {_spread(sample.text_tokens)} tokens, {cut_share(sample):.0%} are cut to "
            f"{sample.most_text_tokens}"
        )
    rate = sample.rows / sample.seconds
    tokens = sample.computed_tokens / sample.seconds
    speed = f", {tokens:,.0f} tokens/s beside the shared beginning" if tokens else ""
    say(f"Speed     {rate:,.1f} rows/s a replica{speed}")
    replicas = config.teacher.replicas[1]
    hours = total * config.label.budget / rate / replicas / 3600
    price = config.plan.price_per_hour
    cost = f", {hours * replicas * price:,.2f} at {price:,.2f} a replica and hour" if price else ""
    if config.label.in_part:
        say(
            f"Budget    {total * config.label.budget:,.0f} rows in {config.label.rounds} round(s); "
            f"{config.label.rounds - 1} student(s) are trained and predict the corpus in between, "
            "which is not counted"
        )
    say(f"In all    {duration(hours * 3600)} with {replicas} replicas{cost}")
    if sample.refused:
        say(f"Refused   {sample.refused} of {sample.rows} rows")
    if not sample.logprobs_nc:
        return
    logprobs_nc = np.array(sample.logprobs_nc)
    probs_nc = _calibrated(config, logprobs_nc)
    shares = np.bincount(probs_nc.argmax(axis=1), minlength=probs_nc.shape[1]) / len(probs_nc)
    say("\n[bold]Labels, calibrated on the sample[/]")
    _histogram(console, config.task.label_names, shares)
    say("\n[bold]Confidence[/]")
    bins = np.histogram(probs_nc.max(axis=1), bins=10, range=(0, 1))[0] / len(probs_nc)
    names = [f"{low / 10:.1f}-{(low + 1) / 10:.1f}" for low in range(10)]
    _histogram(console, names, bins)
    for warning in warnings_of(config, sample, probs_nc):
        say(f"[bold yellow]Warning[/]   {escape(warning)}")


def warnings_of(config: RunConfig, sample: Sample, probs_nc: np.ndarray) -> list[str]:
    """What should make one stop before labelling it all."""
    found = []
    shares = np.bincount(probs_nc.argmax(axis=1), minlength=probs_nc.shape[1]) / len(probs_nc)
    if shares.max() > ONE_LABEL_SHARE:
        name = config.task.label_names[int(shares.argmax())]
        found.append(
            f"{shares.max():.0%} of the rows are labelled {name!r}. Give examples, describe the "
            "labels, or state teacher.prior if that label is that frequent."
        )
    mass = float(np.exp(np.array(sample.logprobs_nc)).sum(axis=1).mean())
    if mass < LOW_MASS:
        found.append(
            f"The teacher gives the labels {mass:.0%} of its probability: it would rather say "
            "something else. Try the other teacher.prompt_format, examples, or another name for "
            "the labels."
        )
    if cut_share(sample) > MOST_CUT:
        found.append(
            f"{cut_share(sample):.0%} of the texts are cut to {sample.most_text_tokens} tokens. "
            "Raise teacher.max_text_tokens, or try teacher.truncation head_tail."
        )
    return found


def cut_share(sample: Sample) -> float:
    """Share of the texts that do not fit."""
    cut = sum(tokens > sample.most_text_tokens for tokens in sample.text_tokens)
    return cut / max(len(sample.text_tokens), 1)


def _calibrated(config: RunConfig, logprobs_nc: np.ndarray) -> np.ndarray:
    classes = logprobs_nc.shape[1]
    uniform_c = np.full(classes, 1 / classes)
    prior = config.teacher.prior
    prior_c = uniform_c if prior is None else np.array([prior[n] for n in config.task.labels])
    bias_c = fit_batch_bias(lambda b: marginal(logprobs_nc, b), prior_c / prior_c.sum())
    return Calibration(bias_c).apply(logprobs_nc)


def _spread(values: list[int]) -> str:
    return f"{statistics.median(values):.0f} (95 %: {np.quantile(values, 0.95):.0f})"


def _histogram(console: Console, names: list[str], shares: np.ndarray) -> None:
    width = max(map(len, names))
    for name, share in zip(names, shares, strict=True):
        bar = "█" * round(BAR * float(share) / max(float(shares.max()), 1e-9))
        console.print(f"  {escape(name):{width}} {float(share):6.1%} {bar}")
