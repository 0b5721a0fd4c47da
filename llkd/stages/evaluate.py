"""How good teacher and student are, where there is gold to measure by.

The teacher is measured on the corpus (where it has gold) and on the test set, both with the
corpus's calibration; the student on the test set, by the scorer that also drove its training.
"""

import time
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from llkd import runtime
from llkd.arrays import fixed_lists, matrix
from llkd.config import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.metrics import Evaluation
from llkd.core.metrics import evaluate as count
from llkd.errors import IncompleteError
from llkd.manifest import Manifest, open_stage, require_complete, write_manifest
from llkd.schema import GOLD, LOGPROBS, PROBS, ROW, TEXT, RunLayout, probs_schema
from llkd.settled import settled_precision
from llkd.storage import Folder


def evaluate(config: RunConfig, calibration: Calibration, tracker: Any) -> dict[str, Any]:
    """Measure what can be measured.

    Returns:
        By `teacher.corpus`, `teacher.test` and `student.test`, those that apply: an Evaluation;
        and `seconds`.
    """
    started = time.monotonic()
    found: dict[str, Any] = {}
    if config.corpus.label_column is not None:
        found["teacher.corpus"] = _measure_teacher(config, "corpus", calibration)
    if config.test is not None:
        found["teacher.test"] = _measure_teacher(config, "test", calibration)
        predict(config, "test", tracker)
        found["student.test"] = _measure_student(config, "test")
    found["seconds"] = time.monotonic() - started
    return found


def predict(config: RunConfig, dataset: str, tracker: Any) -> Manifest:
    """Write the finished student's distributions over a data set; done shards are left alone."""
    layout = RunLayout(config.run_dir)
    ingested = require_complete(Folder(layout.rows(dataset)), "ingest")
    exported = require_complete(Folder(layout.student), "distill")
    folder = Folder(layout.predictions(dataset))
    wanted = Manifest(
        "evaluate", {"student": exported.fingerprint, "rows": ingested.fingerprint}, ""
    )
    manifest = open_stage(folder, wanted)
    if manifest.complete:
        return manifest
    expected = ingested.results["rows"]
    missing = sorted(set(range(len(expected))) - folder.shards())
    skipped = sum(expected) - sum(expected[shard] for shard in missing)
    tracker.begin.remote(f"student on {dataset}", sum(expected), skipped)
    resources = {"GPU": 1.0} if runtime.cluster_has_gpus() else {"CPU": 1.0}
    runtime.run_on_actors(
        StudentActor,
        (config, dataset, settled_precision(config, resources), tracker),
        missing,
        pool=(1, config.student.workers),
        resources=resources,
    )
    if absent := sorted(set(range(len(expected))) - folder.shards()):
        raise IncompleteError(
            f"{folder.uri} lacks {len(absent)} of {len(expected)} shards, first {absent[0]}"
        )
    finished = manifest.finished({"rows": expected})
    write_manifest(folder, finished)
    return finished


class StudentActor:
    """The finished student, and the shards that come to it."""

    def __init__(self, config: RunConfig, dataset: str, precision: str, tracker: Any) -> None:
        import torch

        from llkd.storage import local_copy
        from llkd.student.model import load_finished, use_bfloat16
        from llkd.student.scoring import Scorer

        self._layout = RunLayout(config.run_dir)
        self._dataset, self._tracker = dataset, tracker
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with local_copy(self._layout.student) as directory:
            tokenizer, model = load_finished(directory)
        self._scorer = Scorer(
            tokenizer,
            model.to(device),
            max_length=config.student.max_length,
            bfloat16=use_bfloat16(precision, device),
        )

    def __call__(self, shard: int) -> int:
        """Score one shard."""
        rows = Folder(self._layout.rows(self._dataset)).read_shard(shard, [ROW, TEXT])
        probs_nc = self._scorer.probabilities(
            rows[TEXT].to_pylist(), partial(self._tracker.update.remote, f"{shard}")
        )
        table = pa.table(
            {ROW: rows[ROW], PROBS: fixed_lists(probs_nc)}, schema=probs_schema(probs_nc.shape[1])
        )
        Folder(self._layout.predictions(self._dataset)).write_shard(shard, table)
        return shard


def _measure_teacher(config: RunConfig, dataset: str, calibration: Calibration) -> Evaluation:
    layout = RunLayout(config.run_dir)
    folder = Folder(layout.labels(dataset))
    labelled = require_complete(folder, "label")

    def probabilities(shard: int) -> tuple[np.ndarray, np.ndarray]:
        table = folder.read_shard(shard, [ROW, LOGPROBS])
        return table[ROW].to_numpy(), calibration.apply(matrix(table[LOGPROBS]))

    return _measure(layout, dataset, len(labelled.results["rows"]), probabilities)


def _measure_student(config: RunConfig, dataset: str) -> Evaluation:
    layout = RunLayout(config.run_dir)
    folder = Folder(layout.predictions(dataset))
    predicted = require_complete(folder, "evaluate")

    def probabilities(shard: int) -> tuple[np.ndarray, np.ndarray]:
        table = folder.read_shard(shard, [ROW, PROBS])
        return table[ROW].to_numpy(), matrix(table[PROBS])

    return _measure(layout, dataset, len(predicted.results["rows"]), probabilities)


def _measure(layout: RunLayout, dataset: str, shards: int, probabilities: Any) -> Evaluation:
    """Compare with gold, shard by shard; rows without gold are left out."""
    rows = Folder(layout.rows(dataset))

    def work(shard: int) -> dict[str, Any]:
        row_n, probs_nc = probabilities(shard)
        gold_n = rows.read_shard(shard, [GOLD])[GOLD].take(pa.array(row_n))
        known_n = gold_n.is_valid().to_numpy()
        return count(probs_nc[known_n], gold_n.drop_null().to_numpy()).to_json()

    results = dict(runtime.run_on_shards(work, range(shards)))
    total = Evaluation.from_json(results[0])
    for shard in range(1, shards):
        total = total + Evaluation.from_json(results[shard])
    return total
