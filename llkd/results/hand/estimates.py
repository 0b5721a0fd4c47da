"""How right teacher and student are on the corpus, by the rows labelled by hand.

The teacher has learnt none of them, so all that were drawn at random judge it. The student is judged by those that it was not
told (`gold.judge`). What the rows do not say is filled in by the systems' own confidence in a sample of the corpus, and
corrected by the rows (llkd/core/inference.py).
"""

import math
from typing import Any

import numpy as np

from llkd.cluster.actor_pool import run_on_actors
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.inference import Answers, Estimates, estimate
from llkd.distill.labelled_rows import read_labelled
from llkd.distill.precision import alone_on_cpus, chosen_precision, scoring_resources
from llkd.results.predict import finished_scorer
from llkd.store.folder import Folder
from llkd.store.manifest import require_complete
from llkd.store.schema import RunLayout
from llkd.teacher.gold import read_gold

SAMPLE_ROWS, SAMPLE_SHARDS = 2048, 64
"""Of the corpus, at most."""
FEWEST = 10
"""Rows that judge, below which nothing is estimated."""
MORE = 100
"""Further rows, whose worth is told."""


class Predict:
    """One replica: the finished student on texts that it is given when it starts."""

    def __init__(self, config: RunConfig, precision: str, threads: int, texts: list[str]) -> None:
        self._scorer, self._texts = finished_scorer(config, precision, threads), texts

    def __call__(self, number: int) -> dict[str, Any]:
        """The student's distributions, shape (N, C)."""
        return {"shard": number, "probs": self._scorer.probabilities(self._texts)}


def estimate_on_corpus(config: RunConfig, calibration: Calibration) -> dict[str, Any] | None:
    """Figures of teacher and student on the corpus; None where too few rows are labelled by hand, or the
    teacher has labelled a part of the corpus that is no random one (`label.budget`).

    Args:
        config: the run; its student is finished.
        calibration: of the corpus's labels.

    Returns:
        `teacher` and `student`, each with `rows`, and with `accuracy`, `macro_f1`, `kappa` and `f1` by label as
        `value`, `low` and `high`; `difference`, of student and teacher, with the `z` of the paired test;
        `more`, see `_worth`. The keys of the student are absent where too few rows judge it.
    """
    gold = read_gold(config)
    if gold is None or config.label.in_part:
        return None
    drawn_m = np.isfinite(gold.probability_m)
    random = gold.of_rows(drawn_m)
    if len(random.texts) < FEWEST:
        return None
    texts, teacher_uc = _sample(config, calibration)
    teacher_mc, judge_m, names = (
        calibration.apply(random.logprobs_mc),
        random.judges_m,
        config.task.label_names,
    )
    teacher = estimate(
        _answers(teacher_mc),
        random.label_m,
        random.probability_m,
        _answers(teacher_uc),
        config.seed,
    )
    found: dict[str, Any] = {"teacher": _figures(teacher, 0, names)}
    if judge_m.sum() < FEWEST:
        return found
    judges = random.of_rows(judge_m)
    probs_nc = _predicted(config, [*judges.texts, *texts])
    student_jc, student_uc = probs_nc[: len(judges.texts)], probs_nc[len(judges.texts) :]
    both = estimate(
        _answers(student_jc, teacher_mc[judge_m]), judges.label_m, judges.probability_m,
        _answers(student_uc, teacher_uc), config.seed,
    )  # fmt: skip
    difference = both.first_less_last["accuracy"]
    found["student"] = _figures(both, 0, names)
    found["difference"] = {
        **difference.to_json(),
        "z": difference.value / max(difference.error, 1e-9),
    }
    found["more"] = _worth(config, found["student"])
    return found


def _answers(*probs_nc: np.ndarray) -> Answers:
    """What systems with these distributions say; the first of them is the model."""
    return Answers(np.stack([probs.argmax(axis=1) for probs in probs_nc]), probs_nc[0])


def _figures(found: Estimates, system: int, names: list[str]) -> dict[str, Any]:
    figures = {name: one.to_json() for name, one in found.figures_s[system].items()}
    by_label = {name: one.to_json() for name, one in zip(names, found.f1_sc[system], strict=True)}
    return {"rows": found.rows, **figures, "f1": by_label}


def _worth(config: RunConfig, student: dict[str, Any]) -> dict[str, Any]:
    """What MORE rows would give: `rows`, how many they are; `half_width` of the student's accuracy then."""
    assert config.gold is not None
    accuracy, rows = student["accuracy"], student["rows"]
    half = (accuracy["high"] - accuracy["low"]) / 2
    return {"rows": MORE, "half_width": half * math.sqrt(rows / (rows + config.gold.judge * MORE))}


def curve_gain(curve: list[list[float]], more: float) -> float:
    """By how much further rows would raise the share of right labels, by a + b/n fitted to a learning curve; at
    least 0.

    Args:
        curve: (rows, share of right labels), at different numbers of rows.
        more: further rows that are learnt.
    """
    known = [(rows, right) for rows, right in curve if rows > 0]
    if len(known) < 2:
        return 0.0
    rows_p, right_p = (np.array(column, dtype=np.float64) for column in zip(*known, strict=True))
    slope = float(np.polyfit(1 / rows_p, right_p, 1)[0])
    return max(slope * (1 / (rows_p[-1] + more) - 1 / rows_p[-1]), 0.0)


def _sample(config: RunConfig, calibration: Calibration) -> tuple[list[str], np.ndarray]:
    """(texts, the teacher's distributions) of labelled rows drawn at random."""
    layout, random = RunLayout(config.run_dir), np.random.default_rng(config.seed)
    counts = np.array(require_complete(Folder(layout.labels("corpus")), "label").results["rows"])
    shards = np.sort(random.permutation(np.flatnonzero(counts))[:SAMPLE_SHARDS])
    share = min(1.0, SAMPLE_ROWS / counts[shards].sum())
    texts: list[str] = []
    parts = []
    for shard in shards.tolist():
        _, of_shard, probs_nc = read_labelled(layout, calibration, shard)
        wanted = max(round(share * len(of_shard)), 1)
        chosen = np.sort(random.choice(len(of_shard), wanted, replace=False))
        texts += [of_shard[i] for i in chosen]
        parts.append(probs_nc[chosen])
    return texts, np.concatenate(parts)


def _predicted(config: RunConfig, texts: list[str]) -> np.ndarray:
    """The finished student's distributions, shape (N, C)."""
    resources = scoring_resources(config)
    precision = chosen_precision(config, resources)
    arguments = (config, precision, max(int(resources.get("CPU", 1)), 1), texts)
    if alone_on_cpus():
        found = Predict(*arguments)(0)
    else:
        [found] = run_on_actors(Predict, arguments, [0], resources=resources, pool=(1, 1))
    return np.asarray(found["probs"])
