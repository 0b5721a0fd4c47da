"""The rows held out of training, by which the student of each epoch is measured.

They are confident rows of the teacher's, with its labels: no gold is read here. What the student
said of them is kept, so that it can be compared with gold afterwards where there is any.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llkd.arrays import fixed_lists
from llkd.config import RunConfig
from llkd.core.holdout import Holdout, draw_holdout
from llkd.core.metrics import evaluate
from llkd.errors import DataError
from llkd.runtime import run_on_shards
from llkd.schema import LABEL, PROBS, ROW, SHARD, TEXT, RunLayout
from llkd.selection import Selector
from llkd.storage import Folder
from llkd.student.tokens import CHARACTERS_PER_TOKEN

VALIDATION_SHARD = 0
"""The rows held out are one small table; so is what an epoch's student says of them."""


def holdout_of(config: RunConfig, selector: Selector) -> Holdout | None:
    """Which rows are held out; None if there are none."""
    return draw_holdout(
        config.student.validation_fraction,
        selector.teacher_statistics(),
        selector.shards,
        config.seed,
    )


def make_validation(config: RunConfig, selector: Selector) -> None:
    """Write the held-out rows, if there are to be any and they are not there yet.

    Raises:
        DataError: the corpus is too small to hold any out.
    """
    holdout = holdout_of(config, selector)
    layout = RunLayout(config.run_dir)
    folder = Folder(layout.validation)
    if holdout is None or folder.shards():
        return
    chosen, most = holdout, config.student.max_length * CHARACTERS_PER_TOKEN

    def work(shard: int) -> dict[str, Any]:
        row_n, signals = selector.signals(shard, None)
        held_n = chosen.rows(signals)
        texts = Folder(layout.rows("corpus")).read_shard(shard, [TEXT])[TEXT]
        read = texts.take(pa.array(row_n[held_n]))
        return {
            ROW: row_n[held_n].tolist(),
            LABEL: signals.label_n[held_n].tolist(),
            TEXT: pc.utf8_slice_codeunits(read, 0, most).to_pylist(),
        }

    found = sorted(run_on_shards(work, sorted(chosen.shards)), key=lambda item: item[0])
    rows = {
        SHARD: [shard for shard, part in found for _ in part[ROW]],
        **{name: [v for _, part in found for v in part[name]] for name in (ROW, LABEL, TEXT)},
    }
    if not rows[ROW]:
        raise DataError(
            f"student.validation_fraction = {config.student.validation_fraction} holds out no row "
            "of this corpus: raise it, or set it to 0"
        )
    folder.write_shard(VALIDATION_SHARD, pa.table(rows))


@dataclass(frozen=True)
class Validation:
    """The rows held out: V rows, C classes."""

    texts: list[str]
    label_v: np.ndarray
    """The teacher's labels, shape (V,)."""
    classes: int

    def part(self, rank: int, workers: int) -> slice:
        """What a worker measures: an equal part, to a row."""
        rows = len(self.texts)
        return slice(rows * rank // workers, rows * (rank + 1) // workers)

    def measure(self, probs_vc: np.ndarray) -> dict[str, Any]:
        """How far a student agrees with the teacher's confident labels.

        Args:
            probs_vc: the student's distributions, shape (V, C).
        """
        found = evaluate(probs_vc, self.label_v)
        own_v = probs_vc[np.arange(len(self.label_v)), self.label_v]
        return {
            "rows": found.rows,
            "accuracy": found.accuracy,
            "macro_f1": found.macro_f1,
            "loss": float(-np.log(np.maximum(own_v, 1e-12)).mean()),
        }


def read_validation(config: RunConfig) -> Validation | None:
    """The rows held out; None if there are none."""
    folder = Folder(RunLayout(config.run_dir).validation)
    if config.student.validation_fraction == 0:
        return None
    table = folder.read_shard(VALIDATION_SHARD, [TEXT, LABEL])
    return Validation(table[TEXT].to_pylist(), table[LABEL].to_numpy(), len(config.task.labels))


def write_predictions(config: RunConfig, epoch: int, probs_vc: np.ndarray) -> None:
    """Keep what an epoch's student says of the rows held out."""
    table = pa.table({PROBS: fixed_lists(probs_vc)})
    Folder(RunLayout(config.run_dir).validation_of(epoch)).write_shard(VALIDATION_SHARD, table)


def best_epoch(scores: list[float]) -> int:
    """The first epoch of the highest score."""
    return int(np.argmax(scores))
