"""From raw label log-probabilities to a distribution over the labels.

A language model prefers some label words regardless of the text. `batch` calibration removes this
bias: it finds the per-class bias b under which the corpus mean of p_i ∝ exp(logprob_i − b) equals a
prior (uniform by default). One step, dividing by the mean and renormalising, is batch calibration
(arXiv 2309.17249); iterated to its fixed point, it matches the prior exactly.

Calibration is a function of the stored log-probabilities: changing it needs no new labels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LOWEST_LOGPROB = -100.0
"""Lower bound of log-probabilities, which keeps -inf out of arithmetic."""
MAX_TEMPERATURE = 100.0
"""Bound of the temperature, and of its inverse: if gold is always or never the most probable label,
the likelihood has no maximum."""


@dataclass(frozen=True)
class Marginal:
    """A mergeable statistic: the sum of distributions over rows, shape (C,), and their count."""

    total_c: np.ndarray
    rows: int

    def __add__(self, other: "Marginal") -> "Marginal":
        return Marginal(self.total_c + other.total_c, self.rows + other.rows)

    @property
    def mean_c(self) -> np.ndarray:
        """The mean distribution, shape (C,)."""
        return self.total_c / max(self.rows, 1)


@dataclass(frozen=True)
class Calibration:
    """Maps raw log-probabilities to a distribution: p_i ∝ exp((logprob_i − bias) / temperature)."""

    bias_c: np.ndarray
    """Log bias of each class, shape (C,)."""
    temperature: float = 1.0
    """Above 1 makes the distribution flatter than the model's, below 1 sharper."""

    @property
    def classes(self) -> int:
        """C."""
        return len(self.bias_c)

    def apply(self, logprobs_nc: np.ndarray) -> np.ndarray:
        """The calibrated distributions: shape (N, C), rows sum to 1.

        Args:
            logprobs_nc: raw label log-probabilities, shape (N, C).
        """
        logits_nc = np.maximum(logprobs_nc.astype(np.float64), LOWEST_LOGPROB) - self.bias_c
        if self.temperature != 1.0:
            logits_nc /= self.temperature
        logits_nc -= logits_nc.max(axis=1, keepdims=True)
        np.exp(logits_nc, out=logits_nc)
        logits_nc /= logits_nc.sum(axis=1, keepdims=True)
        return logits_nc


def no_calibration(classes: int) -> Calibration:
    """Only normalises log-probabilities over the labels."""
    return Calibration(np.zeros(classes))


def marginal(logprobs_nc: np.ndarray, bias_c: np.ndarray) -> Marginal:
    """The statistic of one shard under a bias."""
    return Marginal(Calibration(bias_c).apply(logprobs_nc).sum(axis=0), len(logprobs_nc))


def contextual_bias(logprobs_mc: np.ndarray) -> np.ndarray:
    """The bias, shape (C,), under which the mean distribution of content-free texts is uniform.

    Contextual calibration (arXiv 2102.09690).

    Args:
        logprobs_mc: raw label log-probabilities of M content-free texts, shape (M, C).
    """
    bias_c = np.log(np.maximum(marginal(logprobs_mc, np.zeros(logprobs_mc.shape[1])).mean_c, 1e-12))
    return np.asarray(bias_c - bias_c.mean())


def fit_temperature(logprobs_nc: np.ndarray, bias_c: np.ndarray, gold_n: np.ndarray) -> float:
    """The temperature that maximises the likelihood of the gold labels (arXiv 1706.04599).

    The mean negative log-likelihood is convex in 1 / temperature; bisection finds the zero of its
    derivative, the mean of E_p[logit] − logit of gold, in [1 / MAX_TEMPERATURE, MAX_TEMPERATURE].

    Args:
        logprobs_nc: raw label log-probabilities, shape (N, C).
        bias_c: the bias to subtract first, shape (C,).
        gold_n: gold classes, integers, shape (N,).
    """
    logits_nc = np.maximum(logprobs_nc.astype(np.float64), LOWEST_LOGPROB) - bias_c
    gold_logit = logits_nc[np.arange(len(gold_n)), gold_n].mean()
    low, high = -np.log(MAX_TEMPERATURE), np.log(MAX_TEMPERATURE)
    for _ in range(50):
        middle = (low + high) / 2
        probs_nc = Calibration(bias_c, float(np.exp(middle))).apply(logprobs_nc)
        overconfident = (probs_nc * logits_nc).sum(axis=1).mean() > gold_logit
        low, high = (middle, high) if overconfident else (low, middle)
    return float(np.exp((low + high) / 2))


def fit_batch_bias(
    corpus_marginal: Callable[[np.ndarray], Marginal],
    prior_c: np.ndarray,
    tolerance: float = 1e-3,
    max_passes: int = 50,
) -> np.ndarray:
    """The bias, shape (C,), under which the corpus marginal equals a prior.

    Args:
        corpus_marginal: the marginal of the whole corpus under a bias; called once per pass.
        prior_c: the share of each class, shape (C,), sums to 1.
        tolerance: relative error of each class's mean at which to stop.
        max_passes: maximum number of passes.
    """
    bias_c = np.zeros(len(prior_c))
    for _ in range(max_passes):
        ratio_c = corpus_marginal(bias_c).mean_c / prior_c
        if np.all(np.abs(ratio_c - 1) <= tolerance):
            break
        bias_c += np.log(np.maximum(ratio_c, 1e-12))
        bias_c -= bias_c.mean()  # a constant cancels: keep the numbers small
    return bias_c
