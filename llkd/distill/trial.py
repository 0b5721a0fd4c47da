"""What each policy would have done: a trial of all of them by heads on the frozen student.

It takes ten to twenty seconds of a core, on a sample of the corpus. Rows labelled by hand judge the policies: in two halves, each
judged by heads whose labels were refined with the other half only. A head is not a fine-tuned student,
so `selection.policy: auto` takes another policy than the default only if it is better by more than one standard deviation.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llkd.config.run import RunConfig
from llkd.core.metrics import evaluate, paired_z
from llkd.core.policies.base import Policy
from llkd.core.policy_names import DEFAULT_POLICY
from llkd.core.refinement import with_gold
from llkd.distill.frozen_run import FrozenRun
from llkd.student.refiner import Diagnostics, GoldRows, Refiner

TRIAL_ROWS = 2048
"""Maximum rows of the corpus, and of the test set."""
MIN_Z = 1.0
"""Standard deviations (McNemar) by which a policy must surpass the default on the rows labelled by hand."""

Fit = Callable[..., tuple[Refiner, Diagnostics]]
"""`refiner.fit_refiner` with the settings of the run."""


@dataclass(frozen=True)
class TrialRows:
    """N rows of the corpus and what is known of them."""

    features_nd: np.ndarray
    """Frozen features, shape (N, D)."""
    teacher_nc: np.ndarray
    """The teacher's distributions, shape (N, C)."""
    fold_n: np.ndarray
    """See `refinement.fold_of`, shape (N,)."""
    gold_n: np.ndarray
    """Which of the gold rows has the row's text, -1 for none, integers, shape (N,)."""


@dataclass(frozen=True)
class MeasuredRows:
    """Rows of the test set; only the report shows what they say."""

    features_td: np.ndarray
    """Shape (T, D)."""
    label_t: np.ndarray
    """Gold classes, shape (T,)."""


def try_policies(
    config: RunConfig,
    policies: Mapping[str, Policy],
    rows: TrialRows,
    gold: GoldRows | None,
    test: MeasuredRows | None,
    fit: Fit,
) -> dict[str, Any] | None:
    """Figures of each policy, and the one that `auto` takes; None without rows to judge by.

    Args:
        config: the run.
        policies: by name; one of them is the default.
        rows: of the corpus.
        gold: rows labelled by hand.
        test: rows of the test set.
        fit: see Fit.
    """
    if gold is None and test is None:
        return None
    started, threads = time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are too small for more
    size = 0 if gold is None else len(gold.label_m)
    half_m = np.random.default_rng(config.seed).permutation(size) % 2
    found: dict[str, Any] = {
        name: {"selected": 0.0, "right_m": np.zeros(size, bool), "probs_tc": 0.0}
        for name in policies
    }
    for half in (0, 1) if gold is not None else (0,):
        told_m = half_m != half
        probs_nc, held_n = _labels(config, rows, gold, told_m, fit)
        for name, policy in policies.items():
            _try(config, policy, rows, probs_nc, held_n, gold, ~told_m, test, found[name])
    torch.set_num_threads(threads)
    halves = 1 if gold is None else 2
    figures = {name: _figures(one, halves, gold, test) for name, one in found.items()}
    chosen = choice({name: one["right_m"] for name, one in found.items()})
    return {
        "rows": len(rows.fold_n), "gold_rows": size, "chosen": chosen, "policies": figures,
        "seconds": time.monotonic() - started,
    }  # fmt: skip


def choice(right: Mapping[str, np.ndarray]) -> str:
    """The policy that is right more often than the default by most, beyond MIN_Z, else the default.

    Args:
        right: by policy, on which of the M gold rows it is right, shape (M,).
    """
    default_m = right[DEFAULT_POLICY]
    z_of = {
        name: paired_z(int((right_m & ~default_m).sum()), int((default_m & ~right_m).sum()))
        for name, right_m in right.items()
    }
    best = max(z_of, key=lambda name: z_of[name])
    return best if z_of[best] > MIN_Z else DEFAULT_POLICY


def _labels(
    config: RunConfig, rows: TrialRows, gold: GoldRows | None, told_m: np.ndarray, fit: Fit
) -> tuple[np.ndarray, np.ndarray]:
    """(distributions whose labels are trained on, shape (N, C); mask of the rows held out, shape (N,)):
    refined with the gold rows of a mask, without the others."""
    arguments = rows.features_nd, rows.teacher_nc, rows.fold_n
    relabels = gold is not None and config.gold is not None and config.gold.relabel
    refiner, _ = fit(*arguments, gold=gold.of(told_m) if gold is not None and relabels else None)
    probs_nc = refiner.refine(*arguments)
    if gold is None:
        return probs_nc, np.zeros(len(rows.fold_n), bool)
    is_gold_n, told_n = rows.gold_n >= 0, told_m[rows.gold_n]
    if config.gold is not None and config.gold.train:
        known_n = np.where(is_gold_n & told_n, gold.label_m[rows.gold_n], -1)
        probs_nc = with_gold(probs_nc, known_n)
    return probs_nc, is_gold_n & ~told_n


def _try(
    config: RunConfig,
    policy: Policy,
    rows: TrialRows,
    probs_nc: np.ndarray,
    held_n: np.ndarray,
    gold: GoldRows | None,
    judged_m: np.ndarray,
    test: MeasuredRows | None,
    found: dict[str, Any],
) -> None:
    """Train a head by a policy; add what it says of the judged gold rows and the test set."""
    cheap = config.cheap.model_copy(update={"hidden": 0})
    config = config.model_copy(update={"cheap": cheap})
    mean_d, deviation_d = rows.features_nd.mean(axis=0), rows.features_nd.std(axis=0) + 1e-6

    def scaled(features_nd: np.ndarray) -> np.ndarray:
        return np.asarray((features_nd - mean_d) / deviation_d, np.float32)

    position_n, epochs = np.arange(len(held_n)), config.student.epochs
    run = FrozenRun(config, policy, scaled(rows.features_nd), probs_nc, position_n, held_n)
    for epoch in range(epochs):
        found["selected"] += len(run.epoch(epoch)[1]) / (len(held_n) * epochs)
    if gold is not None:
        said_m = run.head.probabilities(scaled(gold.features_md)).argmax(axis=1)
        found["right_m"] |= judged_m & (said_m == gold.label_m)
    if test is not None:
        found["probs_tc"] = found["probs_tc"] + run.head.probabilities(scaled(test.features_td))


def _figures(
    found: dict[str, Any], halves: int, gold: GoldRows | None, test: MeasuredRows | None
) -> dict[str, Any]:
    figures: dict[str, Any] = {"row_visits_fraction": found["selected"] / halves}
    if gold is not None:
        figures["gold_right"] = int(found["right_m"].sum())
    if test is not None:
        tested = evaluate(found["probs_tc"] / halves, test.label_t)
        figures["test"] = {"accuracy": tested.accuracy, "macro_f1": tested.macro_f1}
    return figures
