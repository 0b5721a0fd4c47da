"""Results of compared runs, and their statistics over seeds and data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llkd.core.policies import Signals

OURS = ("llkd", "refined")
"""The policies compared with all others, the baselines."""

PROBE = "linear probe"
"""The name of the baseline that every comparison has: a head on the frozen student, fitted to all
rows."""

FIGURES = (
    "accuracy", "macro_f1", "row_visits_fraction", "unique_rows_fraction", "seconds",
)  # fmt: skip

Bin = tuple[float, float, int]
"""(mean of a signal, share of rows whose pseudo-label is right, rows)."""
BINS = 10
"""Bins of a signal, with equal numbers of rows."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One policy, one seed."""

    policy: str
    """With its own settings, if it has any."""
    seed: int
    accuracy: float
    """On the test set."""
    macro_f1: float
    row_visits_fraction: float
    """Rows trained on, summed over the epochs, as a share of rows × epochs."""
    unique_rows_fraction: float
    """Share of the rows trained on in at least one epoch."""
    seconds: float
    """Of scoring, selection and training."""
    epochs: tuple[dict[str, Any], ...] = ()
    """The stats of each epoch, as in stats.json."""
    reliability: dict[str, list[Bin]] = field(default_factory=dict)
    """The teacher's accuracy by `confidence` and `uncertainty` in the last epoch; empty without
    gold in the corpus."""

    def figures(self) -> dict[str, Any]:
        """The figures alone."""
        return {name: getattr(self, name) for name in ("policy", "seed", *FIGURES)}

    def to_json(self) -> dict[str, Any]:
        """All fields; `from_json` reads them back."""
        return dict(vars(self))

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "RunResult":
        """The inverse of `to_json`."""
        reliability = {
            name: [(mean, share, rows) for mean, share, rows in bins]
            for name, bins in data["reliability"].items()
        }
        return RunResult(**{**data, "epochs": tuple(data["epochs"]), "reliability": reliability})


def probe_result(seed: int, accuracy: float, macro_f1: float, seconds: float) -> RunResult:
    """The result of a linear probe, which reads every row once."""
    return RunResult(
        policy=PROBE, seed=seed, accuracy=accuracy, macro_f1=macro_f1, row_visits_fraction=1.0,
        unique_rows_fraction=1.0, seconds=seconds,
    )  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """A policy over its seeds, beside the best baseline."""

    policy: str
    mean: dict[str, float]
    """Of each figure."""
    deviation: dict[str, float]
    """The sample standard deviation over the seeds; 0 for one seed."""
    difference: float | None
    """Mean macro-F1 less that of the best baseline; None for that baseline itself."""
    p_value: float | None
    """Of a two-sided paired t-test of the difference over the seeds; None for too few seeds."""


@dataclass(frozen=True)
class Comparison:
    """The policies compared on one data set."""

    results: list[RunResult]
    summaries: list[Summary]
    teacher_macro_f1: float
    """On the test set."""


def summarise(results: Sequence[RunResult]) -> list[Summary]:
    """The policies, the best first by mean macro-F1.

    The best baseline has the highest mean macro-F1 among the policies not in OURS; without such a
    policy, among all.
    """
    by_policy: dict[str, list[RunResult]] = {}
    for result in results:
        by_policy.setdefault(result.policy, []).append(result)
    score = {name: float(np.mean([r.macro_f1 for r in runs])) for name, runs in by_policy.items()}
    baselines = [name for name in score if name.partition(":")[0] not in OURS] or list(score)
    best = max(baselines, key=lambda name: score[name])
    found = []
    for name in sorted(score, key=lambda name: -score[name]):
        runs = by_policy[name]
        columns = {figure: [float(getattr(r, figure)) for r in runs] for figure in FIGURES}
        found.append(
            Summary(
                name,
                {figure: float(np.mean(values)) for figure, values in columns.items()},
                {
                    figure: float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                    for figure, values in columns.items()
                },
                None if name == best else score[name] - score[best],
                None if name == best else paired_p_value(runs, by_policy[best]),
            )
        )
    return found


@dataclass(frozen=True)
class Overview:
    """A policy over several data sets."""

    policy: str
    macro_f1: list[float]
    """Mean over the seeds on each data set."""
    deviation: list[float]
    gain: float
    """Mean over the data sets of the macro-F1 relative to the best baseline's, less 1."""
    worst: float
    """The lowest gain on any data set."""
    row_visits_fraction: float
    """Mean over the data sets."""


def overview(by_set: Sequence[Sequence[Summary]]) -> list[Overview]:
    """The policies over several data sets, the largest gain first.

    Args:
        by_set: the summaries of each data set, of the same policies.
    """
    found = []
    for policy in (summary.policy for summary in by_set[0]):
        here = [next(entry for entry in one if entry.policy == policy) for one in by_set]
        best = [next(entry for entry in one if entry.difference is None) for one in by_set]
        relative = [
            own.mean["macro_f1"] / max(other.mean["macro_f1"], 1e-9) - 1
            for own, other in zip(here, best, strict=True)
        ]
        found.append(
            Overview(
                policy,
                [entry.mean["macro_f1"] for entry in here],
                [entry.deviation["macro_f1"] for entry in here],
                float(np.mean(relative)),
                min(relative),
                float(np.mean([entry.mean["row_visits_fraction"] for entry in here])),
            )
        )
    return sorted(found, key=lambda entry: -entry.gain)


def paired_p_value(runs: Sequence[RunResult], others: Sequence[RunResult]) -> float | None:
    """The two-sided p-value of a paired t-test of macro-F1 over the common seeds; None for fewer
    than two, or if all differences are equal."""
    from scipy.stats import ttest_rel

    other = {run.seed: run.macro_f1 for run in others}
    pairs = [(run.macro_f1, other[run.seed]) for run in runs if run.seed in other]
    if len(pairs) < 2:
        return None
    ours, theirs = np.array(pairs).T
    if np.ptp(ours - theirs) == 0:  # the test divides by the deviation of the differences
        return None
    return float(ttest_rel(ours, theirs).pvalue)


def reliability(signals: Signals, gold_n: np.ndarray | None) -> dict[str, list[Bin]]:
    """Accuracy of the pseudo-labels by bins of each measured signal; empty without gold.

    Args:
        signals: of N rows.
        gold_n: gold classes, −1 for rows without gold, shape (N,); None if no row has gold.
    """
    if gold_n is None or not (gold_n >= 0).any():
        return {}
    known_n = gold_n >= 0
    right_n = (signals.label_n == gold_n)[known_n]
    measured = {"confidence": signals.confidence_n, "uncertainty": signals.uncertainty_n}
    return {
        name: _bins(signal_n[known_n].astype(np.float64), right_n)
        for name, signal_n in measured.items()
        if signal_n is not None
    }


def _bins(signal_n: np.ndarray, right_n: np.ndarray) -> list[Bin]:
    order_n = np.argsort(signal_n, kind="stable")
    return [
        (float(signal_n[part].mean()), float(right_n[part].mean()), len(part))
        for part in np.array_split(order_n, min(BINS, len(order_n)))
    ]
