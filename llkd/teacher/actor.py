"""One replica of the teacher pool: reads a shard, labels it and writes the sidecar."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from llkd.cluster.progress import throttled
from llkd.cluster.stage import column_sums
from llkd.cluster.telemetry import ShardDone, Work
from llkd.config.run import RunConfig
from llkd.store.arrays import fixed_lists
from llkd.store.folder import Folder
from llkd.store.schema import (
    ID,
    LABEL_MASS,
    LOGPROBS,
    REJECTS_SCHEMA,
    ROW,
    TEXT,
    RunLayout,
    labels_schema,
)
from llkd.teacher.engine import LabelBatch, engine_class, require_label_mass

CONTENT_FREE = ("N/A", "[MASK]", "-")
"""Content-free texts, labelled beside the corpus for contextual calibration (arXiv 2102.09690)."""
CONTENT_FREE_ITEM = ("content_free", 0)


@dataclass(frozen=True)
class Request:
    """What the teacher labels of a data set, and where its answers go."""

    dataset: str
    rows: Folder
    chosen: Folder | None
    """Positions of the rows to label, by shard; None for all rows."""
    labels: Folder
    rejects: Folder

    @classmethod
    def of(cls, config: RunConfig, dataset: str) -> "Request":
        """The request of a run: all rows, or in a round of labelling the corpus rows chosen for
        it."""
        layout = RunLayout(config.run_dir, config.teacher_number)
        rows, rejects = Folder(layout.rows(dataset)), Folder(layout.label_rejects(dataset))
        if layout.is_round and dataset == "corpus":
            return cls(dataset, rows, Folder(layout.wanted), Folder(layout.answers), rejects)
        return cls(dataset, rows, None, Folder(layout.labels(dataset)), rejects)

    def read(self, shard: int) -> pa.Table:
        """The rows of a shard to label."""
        table = self.rows.read_shard(shard)
        if self.chosen is None:
            return table
        return table.take(self.chosen.read_shard(shard, [ROW])[ROW])


def work_on(config: RunConfig, dataset: str) -> Work:
    """The labelling of a data set, for telemetry."""
    teacher = None if config.teacher_number is None else config.teacher.model
    return Work(RunLayout(config.run_dir).name, "label", dataset, teacher=teacher)


class TeacherActor:
    """One replica: an engine that labels the shards it receives."""

    def __init__(self, config: RunConfig, tracker: Any) -> None:
        self._config = config
        self._tracker = tracker
        tracker.waits_for.remote("loading the model, slowest the first time")
        self._engine = engine_class(config.teacher.engine)(config.teacher, config.task)
        self._checked = False
        concurrent = getattr(self._engine, "concurrent", False)
        self._turn = contextlib.nullcontext() if concurrent else threading.Lock()

    def __call__(self, item: tuple[str, int]) -> dict[str, Any]:
        """Label one shard; returns its counts, and its start and end times."""
        dataset, shard = item
        started = time.time()
        request = Request.of(self._config, dataset)
        if (dataset, shard) == CONTENT_FREE_ITEM:
            counts = self._label_content_free(request)
        else:
            counts = self._label_shard(request, shard, started)
        times = {"started": started, "ended": time.time()}
        return {"dataset": dataset, "shard": shard, **counts, **times}

    def _label_shard(self, request: Request, shard: int, started: float) -> dict[str, Any]:
        unit = f"{request.dataset}/{shard}"
        rows = request.read(shard)
        texts = rows[TEXT].to_pylist()
        ids = rows[ID].to_pylist() if ID in rows.column_names else [None] * len(texts)
        batch = self._label(texts, ids, throttled(partial(self._tracker.update.remote, unit)))
        undefined_n = np.flatnonzero(np.isnan(batch.logprobs_nc).any(axis=1)).tolist()
        refused = {**dict.fromkeys(undefined_n, "not_a_number"), **batch.refused}
        if refused:
            _write_rejects(request, shard, rows, refused)
        kept = [i for i in range(len(texts)) if i not in refused]
        if kept and not self._checked:
            require_label_mass(self._config.teacher, batch.logprobs_nc[kept])
            self._checked = True
        row_n = rows[ROW].to_numpy()[kept]
        counts = self._write_labels(request, shard, row_n, batch.logprobs_nc[kept])
        self._tracker.update.remote(unit, len(texts))
        rejects, seconds = Counter(refused.values()), time.time() - started
        work = work_on(self._config, request.dataset)
        done = ShardDone(work, shard, len(kept), seconds, rejects, batch.tokens)
        self._tracker.shard.remote(done)
        return {**counts, "rejects": rejects}

    def _label(
        self, texts: Sequence[str], ids: Sequence[Any], progress: Callable[[int], None]
    ) -> LabelBatch:
        """Label texts; the engine labels equal texts once."""
        if not texts:
            return LabelBatch(np.zeros((0, len(self._config.task.labels)), dtype=np.float32))
        if getattr(self._engine, "by_id", False):
            with self._turn:
                return self._engine.label(texts, ids, progress)
        places: dict[str, int] = {}
        place_n = [places.setdefault(text, len(places)) for text in texts]
        with self._turn:
            batch = self._engine.label(list(places), [None] * len(places), progress)
        refused = {
            row: batch.refused[place] for row, place in enumerate(place_n) if place in batch.refused
        }
        return LabelBatch(batch.logprobs_nc[place_n], refused, batch.tokens)

    def _label_content_free(self, request: Request) -> dict[str, Any]:
        batch = self._label(CONTENT_FREE, [None] * len(CONTENT_FREE), lambda done: None)
        kept = [i for i in range(len(CONTENT_FREE)) if i not in batch.refused]
        row_n = np.array(kept, dtype=np.int32)
        return self._write_labels(request, 0, row_n, batch.logprobs_nc[kept])

    def _write_labels(
        self, request: Request, shard: int, row_n: np.ndarray, logprobs_nc: np.ndarray
    ) -> dict[str, Any]:
        table = pa.table(
            {
                ROW: row_n,
                LOGPROBS: fixed_lists(logprobs_nc),
                LABEL_MASS: np.exp(logprobs_nc.astype(np.float64)).sum(axis=1).astype(np.float32),
            },
            schema=labels_schema(len(self._config.task.labels)),
        )
        crc = request.labels.write_shard(shard, table)
        return {"rows": len(table), "crc": crc, **column_sums(table, [LABEL_MASS])}


def _write_rejects(
    request: Request, shard: int, rows: pa.Table, refused: Mapping[int, str]
) -> None:
    ids = rows[ID].to_pylist() if ID in rows.column_names else None
    row_n = rows[ROW].to_pylist()
    rejected = [
        {"stage": "label", "shard": shard, "row": row_n[i], "id": ids[i] if ids else None,
         "reason": reason, "detail": None}
        for i, reason in sorted(refused.items())
    ]  # fmt: skip
    table = pa.Table.from_pylist(rejected, schema=REJECTS_SCHEMA)
    request.rejects.write_shard(shard, table)
