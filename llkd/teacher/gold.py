"""The rows labelled by hand, with what the teacher says of them."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llkd.cluster.shard_tasks import sum_over_shards
from llkd.config.run import RunConfig
from llkd.core.tally import Tally
from llkd.store.arrays import matrix
from llkd.store.folder import Folder
from llkd.store.schema import GOLD, LOGPROBS, PROBABILITY, ROW, TEXT, RunLayout


@dataclass(frozen=True)
class Gold:
    """M different texts, each with one gold label."""

    texts: list[str]
    label_m: np.ndarray
    """Gold classes, int64, shape (M,)."""
    logprobs_mc: np.ndarray
    """The teacher's raw log-probabilities, shape (M, C)."""
    probability_m: np.ndarray
    """Of being chosen for labelling, in any unit; NaN for rows that were not drawn at random, shape (M,)."""
    judges_m: np.ndarray
    """Rows that only judge, bool, shape (M,); their labels are told to nothing."""
    conflicting: int
    """Texts that are left out because their rows have different labels."""

    def of_rows(self, chosen_m: np.ndarray) -> "Gold":
        """The rows in a mask: bool, shape (M,)."""
        texts = [self.texts[place] for place in np.flatnonzero(chosen_m)]
        columns = ("label_m", "logprobs_mc", "probability_m", "judges_m")
        return replace(
            self, texts=texts, **{name: getattr(self, name)[chosen_m] for name in columns}
        )

    def places(self, texts: Sequence[str]) -> np.ndarray:
        """Which of the gold rows each of N texts is, -1 where it is none: int64, shape (N,)."""
        place_of = {text: place for place, text in enumerate(self.texts)}
        return np.array([place_of.get(text, -1) for text in texts], dtype=np.int64)

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """The gold class of each of N texts, -1 where there is none: int64, shape (N,)."""
        return np.append(self.label_m, -1)[self.places(texts)]


def told_gold(config: RunConfig) -> Gold | None:
    """The rows labelled by hand whose labels may be learnt: all but those that judge; None without any."""
    gold = read_gold(config)
    told = None if gold is None else gold.of_rows(~gold.judges_m)
    return told if told is not None and told.texts else None


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
    found: dict[str, tuple[int, np.ndarray, float]] = {}
    columns = [TEXT, GOLD] + [PROBABILITY] * (config.gold.probability_column is not None)
    conflicting = set()
    for shard in sorted(labels.shards()):
        labelled = labels.read_shard(shard, [ROW, LOGPROBS])
        table = rows.read_shard(shard, columns).take(labelled[ROW])
        probability_n = np.ones(len(table))
        if PROBABILITY in columns:
            probability_n = table[PROBABILITY].to_numpy().astype(np.float64)
        answers, texts, golds = matrix(labelled[LOGPROBS]), table[TEXT], table[GOLD]
        rows_n = zip(texts.to_pylist(), golds.to_pylist(), answers, probability_n, strict=True)
        for text, label, *known in rows_n:
            if label is None:
                continue
            if found.setdefault(text, (label, *known))[0] != label:
                conflicting.add(text)
    kept = [text for text in found if text not in conflicting]
    probability_m = np.array([found[text][2] for text in kept], dtype=np.float64)
    return Gold(
        kept,
        np.array([found[text][0] for text in kept], dtype=np.int64),
        np.array([found[text][1] for text in kept]).reshape(-1, len(config.task.labels)),
        probability_m,
        _judges(kept, probability_m, config.gold.judge),
        len(conflicting),
    )


def gold_notes(config: RunConfig) -> list[str]:
    """What of the rows labelled by hand is not used, as lines for the console; reads the corpus's texts."""
    gold = read_gold(config)
    if gold is None:
        return []
    lines = []
    if gold.conflicting:
        lines.append(f"gold: texts left out because their labels differ: {gold.conflicting}")
    if not gold.texts:
        lines.append("gold: no row has a label that could be used")
    elif strange := count_strange(config, gold):
        lines.append(
            f"gold: texts that the corpus does not have, which are not trained on: {strange}"
        )
    return lines


def count_strange(config: RunConfig, gold: Gold) -> int:
    """How many of the gold rows' texts the corpus does not have."""
    rows = Folder(RunLayout(config.run_dir).rows("corpus"))

    def work(shard: int) -> Tally:
        place_n = gold.places(rows.read_shard(shard, [TEXT])[TEXT].to_pylist())
        return Tally({"rows_m": np.bincount(place_n[place_n >= 0], minlength=len(gold.texts))})

    found: Tally = sum_over_shards(Tally, work, sorted(rows.shards()))
    return int((found["rows_m"] == 0).sum())


def _judges(texts: Sequence[str], probability_m: np.ndarray, share: float) -> np.ndarray:
    """A share of the rows drawn at random, by a hash of the text: bool, shape (M,)."""
    digests = [zlib.crc32(b"judge" + text.encode("utf-8", "surrogatepass")) for text in texts]
    drawn_m = np.isfinite(probability_m)
    order_m = np.argsort(
        np.where(drawn_m, np.array(digests, dtype=np.float64), np.inf), kind="stable"
    )
    judges_m = np.zeros(len(texts), dtype=bool)
    judges_m[order_m[: int(share * drawn_m.sum())]] = True
    return judges_m
