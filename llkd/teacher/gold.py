"""The rows labelled by hand, with what the teacher says of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llkd.config.run import RunConfig
from llkd.store.arrays import matrix
from llkd.store.folder import Folder
from llkd.store.schema import GOLD, LOGPROBS, ROW, TEXT, RunLayout


@dataclass(frozen=True)
class Gold:
    """M different texts, each with one gold label."""

    texts: list[str]
    label_m: np.ndarray
    """Gold classes, int64, shape (M,)."""
    logprobs_mc: np.ndarray
    """The teacher's raw log-probabilities, shape (M, C)."""
    conflicting: int
    """Texts that are left out because their rows have different labels."""

    def places(self, texts: Sequence[str]) -> np.ndarray:
        """Which of the gold rows each of N texts is, -1 where it is none: int64, shape (N,)."""
        place_of = {text: place for place, text in enumerate(self.texts)}
        return np.array([place_of.get(text, -1) for text in texts], dtype=np.int64)

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """The gold class of each of N texts, -1 where there is none: int64, shape (N,)."""
        return np.append(self.label_m, -1)[self.places(texts)]


def read_gold(config: RunConfig) -> Gold | None:
    """The rows labelled by hand; None if the config has none. Rows without a label, and rows that the
    teacher refused, are left out.

    Raises:
        StorageError: they cannot be read.
    """
    if config.gold is None:
        return None
    layout = RunLayout(config.run_dir, config.teacher_number)
    rows, labels = Folder(layout.rows("gold")), Folder(layout.labels("gold"))
    found: dict[str, tuple[int, np.ndarray]] = {}
    conflicting = set()
    for shard in sorted(labels.shards()):
        labelled = labels.read_shard(shard, [ROW, LOGPROBS])
        table = rows.read_shard(shard, [TEXT, GOLD]).take(labelled[ROW])
        answers = matrix(labelled[LOGPROBS])
        for text, label, logprobs_c in zip(
            table[TEXT].to_pylist(), table[GOLD].to_pylist(), answers, strict=True
        ):
            if label is None:
                continue
            if found.setdefault(text, (label, logprobs_c))[0] != label:
                conflicting.add(text)
    kept = [text for text in found if text not in conflicting]
    return Gold(
        kept,
        np.array([found[text][0] for text in kept], dtype=np.int64),
        np.array([found[text][1] for text in kept]).reshape(-1, len(config.task.labels)),
        len(conflicting),
    )
