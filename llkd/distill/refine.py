"""Refines the pseudo-labels before the first epoch, by probes on the frozen student.

Cross-fitted probes and the bias are fitted to a sample of the corpus (llkd/core/refinement.py), by one
process. Then a pool of actors computes the features of every row, and writes the shards of the
pseudo-labels from the refined distributions.
"""

import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load, save

from llkd.cluster import actor_pool
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.refinement import fold_of
from llkd.distill.precision import alone_on_cpus, chosen_precision, scoring_resources
from llkd.distill.probe import PROBE_ROWS
from llkd.distill.pseudo_labels import pseudo_labels
from llkd.distill.selection import Selector
from llkd.errors import DamageError
from llkd.store.arrays import matrix
from llkd.store.folder import Folder
from llkd.store.schema import LOGPROBS, ROW, TEXT, RunLayout

RESULT, WEIGHTS = "refinement.json", "weights.safetensors"
SMALLEST_SAMPLE = 50
"""Fewer labelled rows are not refined: probes of a few rows know nothing."""


def refine(selector: Selector, calibration: Calibration, tracker: Any) -> None:
    """Write the missing shards of the pseudo-labels from refined distributions, if the config refines
    them.

    Args:
        selector: of the run.
        calibration: of the corpus's labels.
        tracker: the progress tracker.

    Raises:
        StudentError: the student cannot be loaded.
        ActorError: actors died too often.
    """
    config = selector.config
    layout = RunLayout(config.run_dir)
    missing = sorted(set(range(selector.shards)) - Folder(layout.pseudo_labels).shards())
    if layout.is_round or not config.selection.refines or not missing:
        return
    resources = scoring_resources(config)
    precision = chosen_precision(config, resources)
    arguments = (selector, calibration, precision, max(int(resources.get("CPU", 1)), 1))
    run_on_actors = partial(
        actor_pool.run_on_actors, pool=config.predict.replicas, resources=resources
    )
    here = _Frozen(*arguments) if alone_on_cpus() else None
    if read_refinement(config) is None:
        tracker.doing.remote("probes that refine the labels")
        if here is not None:
            here.fit()
        else:
            list(run_on_actors(Fit, arguments, [0]))
    found = read_refinement(config)
    assert found is not None
    if not found["fitted"]:
        return
    rows = Folder(layout.labels("corpus"))
    total = sum(rows.shard_rows(shard) for shard in missing)
    tracker.begin.remote("refined labels", total, 0, "replica")
    written: Iterator[dict[str, Any]]
    if here is not None:
        written = map(Refine(*arguments, frozen=here), missing)
    else:
        written = run_on_actors(Refine, arguments, missing)
    for item in written:
        tracker.update.remote(f"{item['shard']}", item["rows"])
    tracker.end.remote()
    tracker.note.remote(f"refinement changed {found['changed']:.0%} of the teacher's labels")


def read_refinement(config: RunConfig) -> dict[str, Any] | None:
    """The stored figures of the refinement; None if it is missing or damaged."""
    folder = Folder(RunLayout(config.run_dir).refinement)
    try:
        found: dict[str, Any] | None = folder.read_json_if_there(RESULT)
        if found is None or (found["fitted"] and folder.crc32(WEIGHTS) != found["crc32"]):
            return None
    except (DamageError, KeyError, TypeError):
        return None
    return found


class _Frozen:
    """The frozen student of one process, and the labelled rows that it reads."""

    def __init__(
        self, selector: Selector, calibration: Calibration, precision: str, threads: int
    ) -> None:
        import torch

        from llkd.student.model import head_of, load_student, use_bfloat16
        from llkd.student.probe import FrozenStudent

        self.selector, self._calibration = selector, calibration
        config = selector.config
        self._layout, student = RunLayout(config.run_dir), config.student
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            torch.set_num_threads(threads)
        tokenizer, model = load_student(student, config.task.label_names)
        self._bias = head_of(model).bias is not None
        self.student = FrozenStudent(
            tokenizer, model, max_length=student.max_length,
            bfloat16=use_bfloat16(precision, device), device=device,
        )  # fmt: skip

    def read(self, shard: int) -> tuple[pa.ChunkedArray, list[str], np.ndarray]:
        """(row numbers, texts, the teacher's distributions) of a shard's labelled rows."""
        table = Folder(self._layout.labels("corpus")).read_shard(shard, [ROW, LOGPROBS])
        texts = Folder(self._layout.rows("corpus")).read_shard(shard, [TEXT])[TEXT]
        probs_nc = self._calibration.apply(matrix(table[LOGPROBS]))
        return table[ROW], texts.take(table[ROW]).to_pylist(), probs_nc

    def fit(self) -> None:
        """Fit the probes to a sample of the labelled rows and store them."""
        from llkd.student.probe import fit_refiner

        started, config = time.monotonic(), self.selector.config
        texts, teacher_nc = self._sample()
        folder = Folder(self._layout.refinement)
        result = {"fitted": False, "rows": len(texts), "changed": 0.0}
        if len(texts) >= SMALLEST_SAMPLE:
            features_nd, fold_n = self.student.features(texts), fold_of(texts)
            refiner = fit_refiner(
                features_nd, teacher_nc, fold_n, config.selection.beta, self._bias
            )
            refined_nc = refiner.refine(features_nd, teacher_nc, fold_n)
            changed_n = refined_nc.argmax(axis=1) != teacher_nc.argmax(axis=1)
            folder.write_bytes(WEIGHTS, save(refiner.arrays()))
            result.update(fitted=True, changed=float(changed_n.mean()), crc32=folder.crc32(WEIGHTS))
        folder.write_json(RESULT, {**result, "seconds": time.monotonic() - started})

    def _sample(self) -> tuple[list[str], np.ndarray]:
        """(texts, distributions) of up to PROBE_ROWS labelled rows of shards drawn at random."""
        texts: list[str] = []
        probs = []
        random = np.random.default_rng(self.selector.config.seed)
        for shard in random.permutation(self.selector.shards).tolist():
            _, found, probs_nc = self.read(shard)
            left = PROBE_ROWS - len(texts)
            chosen = np.arange(len(found))
            if len(found) > left:
                chosen = np.sort(random.choice(len(found), left, replace=False))
            texts += [found[i] for i in chosen]
            probs.append(probs_nc[chosen])
            if len(texts) == PROBE_ROWS:
                break
        return texts, np.concatenate(probs)


class Fit:
    """An actor that fits the probes."""

    def __init__(self, *arguments: Any) -> None:
        self._frozen = _Frozen(*arguments)

    def __call__(self, item: int) -> dict[str, Any]:
        """Fit and store them."""
        self._frozen.fit()
        return {}


class Refine:
    """One replica: writes shards of the pseudo-labels from refined distributions."""

    def __init__(self, *arguments: Any, frozen: _Frozen | None = None) -> None:
        from llkd.student.probe import Refiner

        self._frozen = frozen or _Frozen(*arguments)
        config = self._frozen.selector.config
        stored = Folder(RunLayout(config.run_dir).refinement).read_bytes(WEIGHTS)
        self._refiner = Refiner.from_arrays(load(stored), config.selection.beta)
        self._folder = Folder(RunLayout(config.run_dir).pseudo_labels)
        # Two shards arrive at once, to overlap their I/O, but a fast tokenizer is not thread-safe.
        self._turn = threading.Lock()

    def __call__(self, shard: int) -> dict[str, Any]:
        """Write one shard; returns its number and rows."""
        rows, texts, teacher_nc = self._frozen.read(shard)
        with self._turn:
            features_nd = self._frozen.student.features(texts)
        refined_nc = self._refiner.refine(features_nd, teacher_nc, fold_of(texts))
        keeps = self._frozen.selector.keeps_teacher_probs
        self._folder.write_shard(shard, pseudo_labels(rows, refined_nc, keeps))
        return {"shard": shard, "rows": len(texts)}
