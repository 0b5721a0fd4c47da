"""Cross-fitted linear probes that refine a teacher's distributions; see llkd/core/refinement.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
from llkd.student.probe import ROUGHLY, Probe, Space, best_penalty, fitted_path

ROUNDS = 3
"""Rounds of refinement; further ones hardly change a label."""
PRIOR_PENALTY = 1e-3
"""L2 penalty of the probes that estimate label frequencies."""


@dataclass(frozen=True)
class Refiner:
    """The probes, with what they need to refine other rows."""

    probe_f: Sequence[Probe]
    """One for each fold, fitted to the others."""
    bias_c: np.ndarray
    """Shape (C,)."""
    beta: float
    """The exponent of the probes; 0 leaves the teacher's labels as they are."""

    def arrays(self) -> dict[str, np.ndarray]:
        """`weight`, shape (F, C, D), `offset`, (F, C), `bias`, (C,), and `beta`."""
        heads = [probe.arrays() for probe in self.probe_f]
        return {
            "weight": np.stack([head["weight"] for head in heads]),
            "offset": np.stack([head["bias"] for head in heads]),
            "bias": self.bias_c,
            "beta": np.array(self.beta),
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> "Refiner":
        """The inverse of `arrays`."""
        weight, offset = (torch.from_numpy(arrays[name]).double() for name in ("weight", "offset"))
        probes = [Probe(*head, 0.0) for head in zip(weight, offset, strict=True)]
        return Refiner(probes, arrays["bias"], float(arrays["beta"]))

    def refine(
        self, features_nd: np.ndarray, teacher_nc: np.ndarray, fold_n: np.ndarray
    ) -> np.ndarray:
        """The refined distributions, float64, shape (N, C).

        Args:
            features_nd: frozen features, shape (N, D).
            teacher_nc: the teacher's distributions, shape (N, C).
            fold_n: see `refinement.fold_of`, shape (N,).
        """
        student_nc = _out_of_fold(self.probe_f, features_nd, fold_n, teacher_nc.shape[1])
        return refined(product(teacher_nc, student_nc, self.beta), self.bias_c)


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


def fit_refiner(
    features_nd: np.ndarray,
    teacher_nc: np.ndarray,
    fold_n: np.ndarray,
    beta: float,
    *,
    bias: bool = True,
    always: bool = False,
    estimates_prior: bool = False,
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
    """
    fit = _CrossFit(features_nd, fold_n, bias)
    prior = _prior_of(fit, teacher_nc) if estimates_prior else None
    prior_c = teacher_nc.mean(axis=0, dtype=np.float64) if prior is None else prior.prior_c
    targets_nc, prior_bias_c = teacher_nc, np.zeros(teacher_nc.shape[1])
    if prior is not None and prior.accepted:
        prior_bias_c = bias_to_match(logs(teacher_nc), prior_c)
        targets_nc = refined(logs(teacher_nc), prior_bias_c)
    penalty = fit.best_penalty(targets_nc)
    student_nc, probe_f = fit(targets_nc, penalty)
    diagnostics = Diagnostics(*confident_agreement(student_nc, targets_nc), prior, prior_bias_c)
    if not always and diagnostics.agreement < diagnostics.confidence:
        return Refiner(probe_f, np.zeros(teacher_nc.shape[1]), 0.0), diagnostics
    for further in reversed(range(ROUNDS)):
        product_nc = product(teacher_nc, student_nc, beta)
        bias_c = bias_to_match(product_nc, prior_c)
        refiner = Refiner(probe_f, bias_c, beta)
        if further:
            student_nc, probe_f = fit(refined(product_nc, bias_c), penalty)
    return refiner, diagnostics


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
