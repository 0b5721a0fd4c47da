"""Strategies for property tests: distributions, signals and shards, including edge cases."""

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from llkd.core.policies import Signals
from llkd.core.statistics import ClassStatistics, class_statistics, on_grid
from llkd.core.uncertainty import entropy

Draw = Callable[[st.SearchStrategy], object]


@st.composite
def distributions(draw: Draw, rows: int, classes: int) -> np.ndarray:
    """Distributions, float64, shape (N, C): spread, peaked, one-hot, uniform, or all the same."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 0.3, 3.0, 30.0, 3000.0]))
    logits_nc = scale * random.normal(size=(rows, classes))
    logits_nc += scale * random.normal(size=classes)  # a class may be without a row
    if draw(st.booleans()):
        logits_nc[:] = logits_nc[:1]
    exp_nc = np.exp(logits_nc - logits_nc.max(axis=1, keepdims=True))
    return np.asarray(exp_nc / exp_nc.sum(axis=1, keepdims=True))


@st.composite
def corpora(draw: Draw) -> tuple[Signals, int]:
    """(signals of up to 60 rows, classes), in the precision that the sidecars have."""
    rows, classes = draw(st.integers(1, 60)), draw(st.integers(2, 6))
    teacher_nc = draw(distributions(rows, classes)).astype(np.float32)
    student_nc = draw(distributions(rows, classes)).astype(np.float16)
    signals = Signals(
        teacher_nc.argmax(axis=1).astype(np.int32), on_grid(teacher_nc.max(axis=1)),
        on_grid(entropy(student_nc)), np.arange(rows, dtype=np.int64), student_nc, teacher_nc,
    )  # fmt: skip
    return signals, classes


def rows_of(signals: Signals, row_n: np.ndarray) -> Signals:
    """The signals of some rows."""
    return Signals(*(np.asarray(value)[row_n] for value in vars(signals).values()))


def statistics_of(parts: list[Signals], classes: int) -> ClassStatistics:
    """The statistics of all shards."""
    found = [class_statistics(p.label_n, p.confidence_n, p.uncertainty_n, classes) for p in parts]
    return sum(found[1:], found[0])
