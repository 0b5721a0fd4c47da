"""Cross-fitted linear probes that refine a teacher's distributions; see llkd/core/refinement.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from llkd.core.prior import PriorEstimate, confident_rows, estimate_prior
from llkd.core.refinement import (
    FOLDS,
    bias_to_match,
    confident_agreement,
    logs,
    product,
    refined,
)
from llkd.student.combination import Combination, fit_combination
from llkd.student.probe import ROUGHLY, Probe, Space, best_penalty, fitted_path

ROUNDS = 3
"""Rounds of refinement; further ones hardly change a label."""
PRIOR_PENALTY = 1e-3
"""L2 penalty of the probes that estimate label frequencies."""

CURVE, CURVE_DRAWS = (0.0, 0.25, 0.5), 3
"""Shares of the gold rows at which the learning curve is measured, and draws of each."""


@dataclass(frozen=True)
class Refiner:
    """The probes, with what they need to refine other rows."""

    probe_f: Sequence[Probe]
    """One for each fold, fitted to the others."""
    combination: Combination
    """Of teacher and probes."""

    @property
    def uses_features(self) -> bool:
        """Whether the probes take part."""
        return self.combination.beta > 0

    def arrays(self) -> dict[str, np.ndarray]:
        """`weight`, shape (F, C, D), `offset`, (F, C), `bias`, (C,), and `exponents`, (2,): of
        teacher and probes."""
        heads = [probe.arrays() for probe in self.probe_f]
        return {
            "weight": np.stack([head["weight"] for head in heads]),
            "offset": np.stack([head["bias"] for head in heads]),
            "bias": self.combination.bias_c,
            "exponents": np.array([self.combination.alpha, self.combination.beta]),
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> "Refiner":
        """The inverse of `arrays`."""
        weight, offset = (torch.from_numpy(arrays[name]).double() for name in ("weight", "offset"))
        probes = [Probe(*head, 0.0) for head in zip(weight, offset, strict=True)]
        alpha, beta = arrays["exponents"].tolist()
        return Refiner(probes, Combination(alpha, beta, arrays["bias"]))

    def out_of_fold(self, features_nd: np.ndarray, fold_n: np.ndarray) -> np.ndarray:
        """The probes' distributions of rows that they were not fitted to, float32, shape (N, C).

        Args:
            features_nd: frozen features, shape (N, D).
            fold_n: see `refinement.fold_of`, shape (N,).
        """
        return _out_of_fold(self.probe_f, features_nd, fold_n, len(self.combination.bias_c))

    def refine(
        self, features_nd: np.ndarray | None, teacher_nc: np.ndarray, fold_n: np.ndarray
    ) -> np.ndarray:
        """The refined distributions, float64, shape (N, C).

        Args:
            features_nd: frozen features, shape (N, D); None if not `uses_features`.
            teacher_nc: the teacher's distributions, shape (N, C).
            fold_n: see `refinement.fold_of`, shape (N,).
        """
        if features_nd is None or not self.uses_features:
            return self.combination.apply(teacher_nc, np.ones_like(teacher_nc))
        student_nc = self.out_of_fold(features_nd, fold_n)
        return self.combination.apply(teacher_nc, student_nc)


@dataclass(frozen=True)
class GoldRows:
    """M rows labelled by hand; they need not be rows of the corpus."""

    features_md: np.ndarray
    """Frozen features, shape (M, D)."""
    teacher_mc: np.ndarray
    """The teacher's distributions, shape (M, C)."""
    fold_m: np.ndarray
    """See `refinement.fold_of`, shape (M,)."""
    label_m: np.ndarray
    """Gold classes, integers, shape (M,)."""

    def of(self, chosen_m: np.ndarray) -> "GoldRows":
        """The rows in a mask: bool, shape (M,)."""
        return GoldRows(**{name: rows_m[chosen_m] for name, rows_m in vars(self).items()})


@dataclass(frozen=True)
class Diagnostics:
    """What the fit shows of the teacher's labels."""

    agreement: float
    """Of the first round's probes with the teacher; see `refinement.confident_agreement`."""
    confidence: float
    """The teacher's, on the same rows."""
    prior: PriorEstimate | None
    """The label frequencies, if they were to be estimated."""
    prior_bias_c: np.ndarray
    """The bias, shape (C,), that gives the teacher's distributions these frequencies; 0 without."""
    gold_mc: np.ndarray | None = None
    """Refined distributions of the gold rows, shape (M, C), cross-fitted: neither probes nor
    combination have seen the row's gold label. None without gold rows."""
    curve: tuple[tuple[int, float], ...] = ()
    """(gold rows fitted to, share of the others whose refined label is right), a few sizes."""
    gold_helps: bool = True
    """False if the combination without gold rows has more of them right: it is then taken."""


def fit_refiner(
    features_nd: np.ndarray,
    teacher_nc: np.ndarray,
    fold_n: np.ndarray,
    beta: float,
    *,
    bias: bool = True,
    always: bool = False,
    estimates_prior: bool = False,
    gold: GoldRows | None = None,
    curve: bool = False,
) -> tuple[Refiner, Diagnostics]:
    """Fit probes and refine labels in turn, ROUNDS times.

    Args:
        features_nd: frozen features, shape (N, D).
        teacher_nc: the teacher's distributions, shape (N, C).
        fold_n: see `refinement.fold_of`, shape (N,).
        beta: exponent of the probes, at least 0.
        bias: see `fit_probe`.
        always: whether to refine even if the probes agree with the teacher less often than its
            confidence (`refinement.confident_agreement`). Otherwise beta is then 0.
        estimates_prior: whether the refined distributions may get label frequencies that differ from
            the teacher's (llkd/core/prior.py).
        gold: rows labelled by hand, to which the combination of teacher and probes is fitted, if it then has
            as many of them right, cross-fitted, as without them. The probes do not learn their labels: over several rounds these would come back through the
            labels of similar rows, and the combination would trust the probes too much.
        curve: whether to measure the learning curve over the gold rows.
    """
    fit = _CrossFit(features_nd, fold_n, bias)
    prior = _prior_of(fit, teacher_nc) if estimates_prior else None
    prior_c = teacher_nc.mean(axis=0, dtype=np.float64) if prior is None else prior.prior_c
    classes = teacher_nc.shape[1]
    targets_nc, prior_bias_c = teacher_nc, np.zeros(classes)
    if prior is not None and prior.accepted:
        prior_bias_c = bias_to_match(logs(teacher_nc), prior_c)
        targets_nc = refined(logs(teacher_nc), prior_bias_c)
    penalty = fit.best_penalty(targets_nc)
    first_nc, first_f = fit(targets_nc, penalty)
    diagnostics = Diagnostics(*confident_agreement(first_nc, targets_nc), prior, prior_bias_c)
    refines = always or diagnostics.agreement >= diagnostics.confidence

    def refiner_with(gold: GoldRows | None) -> tuple[Refiner, Diagnostics]:
        student_nc, probe_f = first_nc, first_f
        for further in reversed(range(ROUNDS if refines else 1)):
            start = Combination(1.0, 0.0, np.zeros(classes))
            if refines:
                bias_c = bias_to_match(product(teacher_nc, student_nc, beta), prior_c)
                start = Combination(1.0, beta, bias_c)
            combination, gold_mc, points = _fitted_to(gold, probe_f, start, curve and not further)
            refiner = Refiner(probe_f, combination)
            if further:
                student_nc, probe_f = fit(combination.apply(teacher_nc, student_nc), penalty)
        return refiner, replace(diagnostics, gold_mc=gold_mc, curve=points)

    found = refiner_with(gold)
    if gold is None:
        return found
    without, _ = refiner_with(None)
    plain_mc = without.refine(gold.features_md, gold.teacher_mc, gold.fold_m)
    if _right(plain_mc, gold) <= _right(found[1].gold_mc, gold):
        return found
    return without, replace(diagnostics, gold_mc=plain_mc, curve=found[1].curve, gold_helps=False)


def _right(probs_mc: np.ndarray | None, gold: GoldRows) -> int:
    """How many gold rows a distribution has right."""
    assert probs_mc is not None
    return int((probs_mc.argmax(axis=1) == gold.label_m).sum())


def _fitted_to(
    gold: GoldRows | None, probe_f: Sequence[Probe], start: Combination, with_curve: bool
) -> tuple[Combination, np.ndarray | None, tuple[tuple[int, float], ...]]:
    """(the combination for the gold rows; their refined distributions, each by a combination fitted to
    the gold rows of other folds; see `Diagnostics.curve`, empty unless wanted)."""
    if gold is None:
        return start, None, ()
    teacher_mc = gold.teacher_mc
    student_mc = _out_of_fold(probe_f, gold.features_md, gold.fold_m, teacher_mc.shape[1])

    def fitted(chosen_m: np.ndarray) -> Combination:
        chosen = teacher_mc[chosen_m], student_mc[chosen_m], gold.label_m[chosen_m]
        return fit_combination(*chosen, start)

    def cross_fitted(chosen_m: np.ndarray) -> np.ndarray:
        """Of all rows, each by those of other folds in a mask."""
        found_mc = np.zeros(teacher_mc.shape)
        for fold in range(FOLDS):
            inside_m = gold.fold_m == fold
            without = fitted(~inside_m & chosen_m)
            found_mc[inside_m] = without.apply(teacher_mc[inside_m], student_mc[inside_m])
        return found_mc

    all_m = np.ones(len(gold.label_m), bool)
    gold_mc, random, curve = cross_fitted(all_m), np.random.default_rng(0), []
    for share in CURVE if with_curve else ():
        right = []
        for _ in range(CURVE_DRAWS):
            chosen_m = random.permutation(len(all_m)) < share * len(all_m)
            right.append((cross_fitted(chosen_m).argmax(axis=1) == gold.label_m).mean())
        curve.append((round(share * len(all_m) * (1 - 1 / FOLDS)), float(np.mean(right))))
    if with_curve:
        right_m = gold_mc.argmax(axis=1) == gold.label_m
        curve.append((round(len(all_m) * (1 - 1 / FOLDS)), float(right_m.mean())))
    return fitted(all_m), gold_mc, tuple(curve)


class _CrossFit:
    """Fits a probe for each fold to the rows of the others."""

    def __init__(self, features_nd: np.ndarray, fold_n: np.ndarray, bias: bool) -> None:
        self._features_nd, self._fold_n = features_nd, fold_n
        self._space = Space(features_nd, bias, torch.float32)

    def best_penalty(self, targets_nc: np.ndarray) -> float:
        """See `probe.best_penalty`."""
        return best_penalty(self._space, _tensor(targets_nc), self._fold_n, ROUGHLY)

    def __call__(
        self, targets_nc: np.ndarray, penalty: float, chosen_n: np.ndarray | None = None
    ) -> tuple[np.ndarray, list[Probe]]:
        """(distributions of all rows out of fold, shape (N, C); the probes).

        Args:
            targets_nc: to fit to, shape (N, C).
            penalty: L2.
            chosen_n: mask of the rows to fit to, shape (N,); all by default.
        """
        targets, probe_f = _tensor(targets_nc), []
        for fold in range(FOLDS):
            inside_n = self._fold_n != fold
            inside = torch.from_numpy(inside_n if chosen_n is None else inside_n & chosen_n)
            rows = self._space.rows[inside], targets[inside]
            [weight] = fitted_path(*rows, [penalty], ROUGHLY)
            probe_f.append(self._space.probe(weight, penalty))
        classes = targets_nc.shape[1]
        return _out_of_fold(probe_f, self._features_nd, self._fold_n, classes), probe_f


def _prior_of(fit: _CrossFit, teacher_nc: np.ndarray) -> PriorEstimate:
    chosen_n = confident_rows(teacher_nc)
    labels_nc = np.eye(teacher_nc.shape[1])[teacher_nc.argmax(axis=1)]
    student_nc, _ = fit(labels_nc, PRIOR_PENALTY, chosen_n)
    return estimate_prior(student_nc, teacher_nc, chosen_n)


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).float()


def _out_of_fold(
    probe_f: Sequence[Probe], features_nd: np.ndarray, fold_n: np.ndarray, classes: int
) -> np.ndarray:
    """The distribution of each row by the probe of its fold, float32, shape (N, C)."""
    student_nc = np.zeros((len(features_nd), classes), np.float32)
    for fold, probe in enumerate(probe_f):
        student_nc[fold_n == fold] = probe.probabilities(features_nd[fold_n == fold])
    return student_nc
