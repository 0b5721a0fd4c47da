"""What labelling the corpus will take, from a sample of it, before money is spent.

A sample of rows is labelled by one replica, as the stage would do it. Nothing of it is kept.
"""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from llkd import runtime
from llkd.config import RunConfig
from llkd.config_sources import SourceConfig
from llkd.core.calibration import Calibration, fit_batch_bias, marginal
from llkd.errors import DataError
from llkd.progress import duration
from llkd.settled import settled_teacher
from llkd.sources import as_text, check_columns, count_rows, list_files, read_rows
from llkd.stages.label import default_resources
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


def run_plan(config: RunConfig, console: Console) -> None:
    """Label a sample with each teacher and print what the whole corpus would take."""
    total, sampled = sample_rows(config.corpus, config.plan.rows, config.seed)
    console.print(f"Corpus    {total:,} rows; {len(sampled)} of them sampled")
    for alone in config.of_each_teacher or [config]:
        resources = alone.teacher.resources or default_resources(alone)
        runtime.require_resources(resources, "teacher.resources")
        teacher = settled_teacher(alone, resources, keep=False)
        alone = alone.model_copy(update={"teacher": teacher})
        (found,) = runtime.run_on_actors(
            PlanActor, (alone,), [sampled], pool=(1, 1), resources=resources
        )
        show_plan(alone, Sample(**found), total, console)


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
    say(f"Teacher   {escape(config.teacher.model)}")
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
