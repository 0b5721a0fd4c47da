"""Rows a second of the uncertainty pass, compared with other ways to score the same rows.

Loading a model and its first batch are not counted.

    ours         shard by shard: reading the text, the student's distributions, uncertainty, writing
    pipeline     transformers.pipeline("text-classification") as usually written, 32 texts per batch;
                 its model is in float32, as saved
    pipeline_1   the same with one text per batch, its default
    bare_*       a loop over all texts in memory: tokenised, sorted by length, in batches of the number
                 of rows that ends the name, in the precision of `ours`: by `autocast`, or with
                 converted weights (`weights`)
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from llkd.config.run import RunConfig
from llkd.core.statistics import on_grid
from llkd.core.uncertainty import MEASURES
from llkd.distill.shard_queue import Piece, PieceQueue
from llkd.lab.benchmarks import contest, student
from llkd.lab.benchmarks.arguments import add_speed, config_of
from llkd.store.folder import Folder
from llkd.store.schema import ROW, TEXT, UNCERTAINTY, UNCERTAINTY_SCHEMA, RunLayout
from llkd.student.model import autocast, load_student
from llkd.student.scoring import Scorer, scoring_copy

PIPELINE_BATCH = 32
BATCH_SIZES = (16, 32, 64, 128)
"""Batch sizes of the bare loops."""
WARM_UP_TEXTS = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `run`."""
    add_speed(parser, 2048)


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure as the command line says."""
    config = config_of(arguments)
    return benchmark_scoring(config, arguments.rows, arguments.rounds, say)


def benchmark_scoring(
    config: RunConfig, rows: int, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure with the config's corpus and student.

    A preliminary round finds the fastest of BATCH_SIZES for each bare loop; the ratio is to the
    faster loop.

    Returns:
        `rows_per_second` by contestant and round, `ratios` of ours to the others, and the
        rates of the preliminary round (`tried`).
    """
    with tempfile.TemporaryDirectory(prefix="llkd-benchmark-") as name:
        folder = Path(name)
        config = student.prepare(config, folder, rows)
        texts = contest.read_texts(folder / student.TEXTS)
        run = partial(contest.race, "llkd.lab.benchmarks.scoring", config, folder, say=say)
        tried: contest.Rates = {}
        loops = []
        for way in ("autocast", "weights") if student.is_bfloat16(config) else ("float32",):
            names = [f"bare_{way}_{size}" for size in BATCH_SIZES]
            tried |= run(names, 1, what="scoring, batch sizes")
            loops.append(max(names, key=lambda name: tried[name][0]))
        rates = run(["ours", "pipeline", "pipeline_1", *loops], rounds, what="scoring")
    return {
        "rows_per_second": rates,
        "ratios": {
            "vs_pipeline": contest.ratio(rates, "pipeline"),
            "vs_pipeline_1": contest.ratio(rates, "pipeline_1"),
            "vs_bare_loop": min(contest.ratio(rates, loop) for loop in loops),
        },
        "tried": tried,
        **student.describe(config, texts, rounds),
    }


def table(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    return contest.table({result["precision"]: result["rows_per_second"]}, result)


def run_ours(config: RunConfig, folder: Path) -> float:
    """The pass over the shards, as a worker of the epoch loop does it."""
    tokenizer, model = load_student(config.student, config.task.label_names)
    model = scoring_copy(model, student.is_bfloat16(config)).to(student.device())
    scorer = Scorer(tokenizer, model, max_length=config.student.max_length)
    layout = RunLayout(str(folder))
    corpus, uncertainty = Folder(layout.rows("corpus")), Folder(layout.uncertainty(0))
    queue = PieceQueue(student.shard_rows(corpus), sorted(corpus.shards()))
    measure = MEASURES[config.selection.uncertainty]
    scorer.probabilities(_texts(folder)[:WARM_UP_TEXTS])
    started, rows = time.perf_counter(), 0
    for piece, probs_nc in scorer.stream(_pieces(corpus, queue)):
        whole_n = queue.done(piece, on_grid(measure(probs_nc)))
        rows += len(probs_nc)
        if whole_n is not None:
            columns = {ROW: np.arange(len(whole_n), dtype=np.int32), UNCERTAINTY: whole_n}
            uncertainty.write_shard(piece.shard, pa.table(columns, schema=UNCERTAINTY_SCHEMA))
    return rows / (time.perf_counter() - started)


def _pieces(corpus: Folder, queue: PieceQueue) -> Iterator[tuple[Piece, list[str]]]:
    while (piece := queue.take(0)) is not None:
        if piece.start == 0:
            texts = corpus.read_shard(piece.shard, [TEXT])[TEXT]
        yield piece, texts[piece.start : piece.stop].to_pylist()


def run_pipeline(config: RunConfig, folder: Path, batch_size: int) -> float:
    """The pipeline of the model's card."""
    return _rate(partial(pipeline_scores(config), batch_size=batch_size), _texts(folder))


def pipeline_scores(config: RunConfig) -> Callable[..., Any]:
    """The pipeline; given texts, it returns the score of every label."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=config.student.model, device=student.device())
    return partial(classify, truncation=True, max_length=config.student.max_length, top_k=None)


def run_bare(config: RunConfig, folder: Path, way: str, batch_size: int) -> float:
    """A loop optimised by hand."""
    return _rate(bare_loop(config, way, batch_size), _texts(folder))


def bare_loop(config: RunConfig, way: str, batch_size: int) -> Callable[[list[str]], torch.Tensor]:
    """The loop; given texts, it returns their distributions over the labels."""
    tokenizer, model = student.load_as_users_do(config)
    model.eval()
    if way == "weights":
        model.to(torch.bfloat16)

    def probabilities(texts: list[str]) -> torch.Tensor:
        encoded = tokenizer(texts, truncation=True, max_length=config.student.max_length)
        order = sorted(range(len(texts)), key=lambda i: len(encoded["input_ids"][i]))
        probs_nc = torch.empty(len(texts), model.config.num_labels)
        with torch.inference_mode(), autocast(student.device(), way == "autocast"):
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                batch = tokenizer.pad(
                    {key: [values[i] for i in chosen] for key, values in encoded.items()},
                    return_tensors="pt",
                ).to(student.device())
                probs_nc[chosen] = model(**batch).logits.float().softmax(-1).cpu()
        return probs_nc

    return probabilities


def _rate(score: Callable[[list[str]], Any], texts: list[str]) -> float:
    """Rows a second of a scorer of texts in memory."""
    score(texts[:WARM_UP_TEXTS])
    started = time.perf_counter()
    score(texts)
    return len(texts) / (time.perf_counter() - started)


def _texts(folder: Path) -> list[str]:
    return contest.read_texts(folder / student.TEXTS)


CONTESTANTS: dict[str, contest.Contestant] = {
    "ours": run_ours,
    "pipeline": partial(run_pipeline, batch_size=PIPELINE_BATCH),
    "pipeline_1": partial(run_pipeline, batch_size=1),
    **{
        f"bare_{way}_{size}": partial(run_bare, way=way, batch_size=size)
        for way in ("autocast", "weights", "float32")
        for size in BATCH_SIZES
    },
}


if __name__ == "__main__":
    contest.serve(CONTESTANTS)
