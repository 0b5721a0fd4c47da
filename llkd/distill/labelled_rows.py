"""A sample of the labelled rows with their frozen features, to which probes are fitted."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.refinement import fold_of
from llkd.distill.selection import Selector, sampled
from llkd.store.arrays import matrix
from llkd.store.folder import Folder
from llkd.store.schema import LOGPROBS, ROW, TEXT, RunLayout

if TYPE_CHECKING:
    from llkd.student.probe import FrozenStudent


@dataclass(frozen=True)
class LabelledRows:
    """N rows, shard by shard."""

    shard_n: np.ndarray
    """Shape (N,)."""
    row_n: np.ndarray
    """Of the shard, shape (N,)."""
    texts: list[str]
    features_nd: np.ndarray
    """Shape (N, D)."""
    teacher_nc: np.ndarray
    """The teacher's distributions, shape (N, C)."""

    @property
    def fold_n(self) -> np.ndarray:
        """See `refinement.fold_of`, shape (N,)."""
        return fold_of(self.texts)


def frozen_student(config: RunConfig, precision: str, threads: int) -> "FrozenStudent":
    """The student before its training.

    Args:
        config: the run.
        precision: of its matrix products.
        threads: of this process, on a CPU.

    Raises:
        StudentError: it cannot be loaded.
    """
    import torch

    from llkd.student.model import load_student, use_bfloat16
    from llkd.student.probe import FrozenStudent

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(threads)
    tokenizer, model = load_student(config.student, config.task.label_names)
    return FrozenStudent(
        tokenizer, model, max_length=config.student.max_length,
        bfloat16=use_bfloat16(precision, device), device=device,
    )  # fmt: skip


def read_labelled(
    layout: RunLayout, calibration: Calibration, shard: int
) -> tuple[pa.ChunkedArray, list[str], np.ndarray]:
    """(row numbers, texts, the teacher's distributions) of a shard's labelled rows."""
    table = Folder(layout.labels("corpus")).read_shard(shard, [ROW, LOGPROBS])
    texts = Folder(layout.rows("corpus")).read_shard(shard, [TEXT])[TEXT]
    probs_nc = calibration.apply(matrix(table[LOGPROBS]))
    return table[ROW], texts.take(table[ROW]).to_pylist(), probs_nc


def labelled_sample(
    selector: Selector, calibration: Calibration, student: "FrozenStudent"
) -> LabelledRows:
    """Up to PROBE_ROWS rows of shards drawn at random."""
    read = partial(read_labelled, RunLayout(selector.config.run_dir), calibration)

    def candidates(shard: int) -> tuple[np.ndarray, Any]:
        found = read(shard)
        return np.arange(len(found[1])), found

    parts: list[tuple[np.ndarray, ...]] = []
    texts: list[str] = []
    for shard, chosen, (rows, of_shard, probs_nc) in sampled(selector, candidates):
        drawn = [of_shard[i] for i in chosen]
        row_n = rows.to_numpy()[chosen]
        parts.append((np.full(len(drawn), shard), row_n, student.features(drawn), probs_nc[chosen]))
        texts += drawn
    shard_n, row_n, features_nd, teacher_nc = map(np.concatenate, zip(*parts, strict=True))
    return LabelledRows(shard_n, row_n, texts, features_nd, teacher_nc)
