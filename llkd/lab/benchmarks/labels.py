"""Quality of the teacher's labels and of their confidence, by verbalizer and calibration.

Each config names rows with gold labels (`corpus.path` with `corpus.label_column`) and a task; the model
is loaded once. The rows are labelled once per verbalizer; all calibrations are computed from that.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from llkd.config.load import load_config
from llkd.config.packages import require_packages
from llkd.config.run import RunConfig
from llkd.core.calibration import (
    Calibration,
    contextual_bias,
    fit_batch_bias,
    fit_temperature,
    marginal,
    no_calibration,
)
from llkd.core.metrics import evaluate
from llkd.core.verbalizers import Verbalizer, label_tree
from llkd.errors import ConfigError, DataError, TeacherError
from llkd.ingest.files import list_files
from llkd.ingest.sources import as_text, check_columns, count_rows, read_rows
from llkd.teacher.actor import CONTENT_FREE
from llkd.teacher.examples import with_drawn_examples
from llkd.teacher.prompting import Prompter, make_prompter

RAW = "first token"
"""The usual method: the first token of each label, uncalibrated; labels that share it cannot be
distinguished."""
VERBALIZERS = (RAW, "word", "code", "sequence")


@dataclass(frozen=True)
class Labelled:
    """Rows with gold labels."""

    texts: list[str]
    gold_n: np.ndarray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--rows", type=int, default=2000, help="maximum rows of each corpus")
    parser.add_argument("--verbalizers", help=f"separated by commas: {', '.join(VERBALIZERS)}")


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure as the command line says."""
    require_packages("benchmark labels", "vllm", extra="gpu")
    configs = [load_config(path, []) for path in arguments.configs]
    verbalizers = VERBALIZERS if arguments.verbalizers is None else arguments.verbalizers.split(",")
    return measure_labels(configs, verbalizers, arguments.rows, say)


def measure_labels(
    configs: Sequence[RunConfig],
    verbalizers: Sequence[str],
    rows: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Label up to `rows` rows of each config by each verbalizer.

    Returns:
        Records of `run_dir` (the data set's name), `verbalizer`, `calibration`, `accuracy`,
        `macro_f1`, `ece`, `auroc`, `rows_per_second`.

    Raises:
        DataError: a corpus has no gold labels.
        ConfigError: a verbalizer does not exist.
    """
    if unknown := [name for name in verbalizers if name not in VERBALIZERS]:
        raise ConfigError(f"--verbalizers: {unknown[0]!r} is none of {', '.join(VERBALIZERS)}")
    for config in configs:
        if config.corpus.label_column is None:
            raise DataError(
                f"{config.run_dir}: corpus.label_column must name the gold labels to measure by"
            )
    configs = [with_drawn_examples(config) for config in configs]
    from llkd.teacher.engines.vllm import VLLMEngine

    first = configs[0]
    dtype = VLLMEngine.machine_arguments(first.teacher)
    arguments = {**dtype, **first.teacher.engine_args}
    engine = VLLMEngine(first.teacher.model_copy(update={"engine_args": arguments}), first.task)
    records = []
    for config in configs:
        labelled = read_labelled(config, rows, {example.text for example in config.task.examples})
        answers: dict[Any, tuple[np.ndarray, np.ndarray, float]] = {}
        for name in verbalizers:
            try:
                prompter = _prompter(config, name, engine.prompter.tokenizer)
                engine.use_prompter(prompter)
            except TeacherError as error:
                say(f"{config.run_dir} {name}: {error}")
                continue
            # Equal questions are asked once: `word` and `sequence` agree on labels of one token.
            asked = (name == "code", prompter.verbalizer.questions, prompter.verbalizer.parts)
            if asked not in answers:
                answers[asked] = _label(engine, labelled.texts)
            logprobs_nc, free_mc, rate = answers[asked]
            for calibration, probs_nc, gold_n in calibrated(logprobs_nc, free_mc, labelled.gold_n):
                found = evaluate(probs_nc, gold_n)
                record = {
                    "data": config.run_dir, "verbalizer": name, "calibration": calibration,
                    "rows": len(gold_n), "accuracy": found.accuracy, "macro_f1": found.macro_f1,
                    "ece": found.ece, "auroc": found.auroc, "rows_per_second": rate,
                    "questions": len(prompter.verbalizer.questions),
                    "prefix_tokens": len(prompter.fixed[0]),
                }  # fmt: skip
                records.append(record)
                say(json.dumps(record))
    return records


def _label(engine: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, float]:
    """Log-probabilities of the texts, of texts without content, and rows a second."""
    started = time.perf_counter()
    logprobs_nc = engine.label(texts, [None] * len(texts), lambda done: None).logprobs_nc
    rate = len(texts) / (time.perf_counter() - started)
    free_mc = engine.label(CONTENT_FREE, [None] * len(CONTENT_FREE), lambda done: None).logprobs_nc
    return logprobs_nc, free_mc, rate


def calibrated(
    logprobs_nc: np.ndarray, free_mc: np.ndarray, gold_n: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(calibration, distributions, gold) by every calibration.

    `temperature` is fitted on each half of the rows and measured on the other; `known prior` is
    `batch` with the frequencies of the gold labels.
    """
    classes = logprobs_nc.shape[1]
    fit = partial(fit_batch_bias, partial(marginal, logprobs_nc))
    bias_c = fit(np.full(classes, 1 / classes))
    one_step_c = fit(np.full(classes, 1 / classes), max_passes=1)
    share_c = np.bincount(gold_n, minlength=classes) + 1.0
    yield "none", no_calibration(classes).apply(logprobs_nc), gold_n
    yield "contextual", Calibration(contextual_bias(free_mc)).apply(logprobs_nc), gold_n
    yield "batch, one step", Calibration(one_step_c).apply(logprobs_nc), gold_n
    yield "batch", Calibration(bias_c).apply(logprobs_nc), gold_n
    probs_nc = np.zeros(logprobs_nc.shape)
    for half in (0, 1):
        temperature = fit_temperature(logprobs_nc[half::2], bias_c, gold_n[half::2])
        probs_nc[1 - half :: 2] = Calibration(bias_c, temperature).apply(logprobs_nc[1 - half :: 2])
    yield "temperature", probs_nc, gold_n
    yield "known prior", Calibration(fit(share_c / share_c.sum())).apply(logprobs_nc), gold_n


def read_labelled(config: RunConfig, rows: int, shown: set[str]) -> Labelled:
    """Draw rows of the corpus by seed, of different texts that are not among those `shown`."""
    source = config.corpus
    classes = {name: index for index, name in enumerate(config.task.labels)}
    found: dict[str, int] = {}
    for file in list_files(source, "corpus"):
        check_columns(file, source, "corpus")
        for row in read_rows(file, source, 0, count_rows(file, source)):
            text, gold = as_text(row.text), as_text(row.gold)
            if text and text.strip() and text not in shown and gold in classes:
                found.setdefault(text, classes[gold])
    texts = list(found)
    order = np.random.default_rng(config.seed).permutation(len(texts))[:rows]
    chosen = [texts[place] for place in order]
    return Labelled(chosen, np.array([found[text] for text in chosen]))


def _prompter(config: RunConfig, name: str, tokenizer: Any) -> Prompter:
    wanted = "sequence" if name == RAW else name
    teacher = config.teacher.model_copy(update={"verbalizer": wanted})
    prompter = make_prompter(teacher, config.task, tokenizer)
    return replace(prompter, verbalizer=_first_tokens(prompter)) if name == RAW else prompter


def _first_tokens(prompter: Prompter) -> Verbalizer:
    """The labels' first tokens, whether or not they are distinct."""
    asked = prompter.verbalizer
    tokens = [asked.questions[parts[0][0]].tokens[parts[0][1]] for parts in asked.parts]
    labels = prompter.task.label_names
    return label_tree("word", {label: [t] for label, t in zip(labels, tokens, strict=True)}, 128)


def table(records: Sequence[dict[str, Any]]) -> str:
    """A line per data set, a column per verbalizer and calibration: accuracy, ECE, AUROC."""
    ways = list(dict.fromkeys((r["verbalizer"], r["calibration"]) for r in records))
    data = list(dict.fromkeys(r["data"] for r in records))
    place = {(r["data"], r["verbalizer"], r["calibration"]): r for r in records}
    head = "".join(f"{f'{v}, {c}':>26}" for v, c in ways)
    lines = [f"{'accuracy / ECE / AUROC':24}{head}"]
    for name in data:
        cells = []
        for way in ways:
            r = place.get((name, *way))
            cells.append(
                f"{'-':>26}" if r is None
                else f"{r['accuracy']:.3f} / {r['ece']:.3f} / {r['auroc']:.3f}".rjust(26)
            )  # fmt: skip
        lines.append(f"{name:24}" + "".join(cells))
    return "\n".join(lines)
