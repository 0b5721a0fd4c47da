"""From raw label log-probabilities to a distribution over the labels.

A language model prefers some label words whatever the text says. `batch` calibration removes
that: it looks for the per-class bias b under which the corpus mean of
p_i ∝ exp(logprob_i − b) equals a prior (uniform by default). One step of it, dividing by the
mean and normalising again, is batch calibration (arXiv 2309.17249); repeated to its fixed point
it holds the marginals exactly.

All of it is a function of the stored log-probabilities, so it can be done again at any time
without labelling again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LOWEST_LOGPROB = -100.0
"""Log-probabilities below this are raised to it, so that -inf never meets arithmetic."""


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
    """How raw log-probabilities become a distribution: p_i ∝ exp((logprob_i − bias) / temperature)."""

    bias_c: np.ndarray
    """Log bias of each class, shape (C,)."""
    temperature: float = 1.0
    """Above 1 the distribution is less sure than the model, below 1 surer."""

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
    """Log-probabilities are normalised over the labels, and no more."""
    return Calibration(np.zeros(classes))


def marginal(logprobs_nc: np.ndarray, bias_c: np.ndarray) -> Marginal:
    """The statistic of one shard under a bias."""
    return Marginal(Calibration(bias_c).apply(logprobs_nc).sum(axis=0), len(logprobs_nc))


def contextual_bias(logprobs_mc: np.ndarray) -> np.ndarray:
    """The bias, shape (C,), that makes the mean answer to texts without content uniform.

    Contextual calibration (arXiv 2102.09690).

    Args:
        logprobs_mc: raw label log-probabilities of M texts without content, shape (M, C).
    """
    bias_c = np.log(np.maximum(marginal(logprobs_mc, np.zeros(logprobs_mc.shape[1])).mean_c, 1e-12))
    return np.asarray(bias_c - bias_c.mean())


def fit_temperature(logprobs_nc: np.ndarray, bias_c: np.ndarray, gold_n: np.ndarray) -> float:
    """The temperature under which gold labels are most probable (arXiv 1706.04599).

    The mean negative log-likelihood is convex in 1 / temperature; its derivative, mean of
    E_p[logit] − logit of gold, is brought to zero by bisection within [1/MOST, MOST].

    Args:
        logprobs_nc: raw label log-probabilities, shape (N, C).
        bias_c: subtracted before, shape (C,).
        gold_n: gold classes, integers, shape (N,).
    """
    logits_nc = np.maximum(logprobs_nc.astype(np.float64), LOWEST_LOGPROB) - bias_c
    gold_logit = logits_nc[np.arange(len(gold_n)), gold_n].mean()
    low, high = -np.log(MOST_TEMPERATURE), np.log(MOST_TEMPERATURE)
    for _ in range(50):
        middle = (low + high) / 2
        probs_nc = Calibration(bias_c, float(np.exp(middle))).apply(logprobs_nc)
        too_sure = (probs_nc * logits_nc).sum(axis=1).mean() > gold_logit
        low, high = (middle, high) if too_sure else (low, middle)
    return float(np.exp((low + high) / 2))


MOST_TEMPERATURE = 100.0
"""Where gold is always, or never, the likeliest label, no temperature is best: it ends here."""


def fit_batch_bias(
    corpus_marginal: Callable[[np.ndarray], Marginal],
    prior_c: np.ndarray,
    tolerance: float = 1e-3,
    max_passes: int = 50,
) -> np.ndarray:
    """The bias, shape (C,), under which the corpus marginal equals a prior.

    Args:
        corpus_marginal: the marginal of the whole corpus under a bias; called once a pass.
        prior_c: the share of each class, shape (C,), sums to 1.
        tolerance: stop when no class's mean differs from its prior by more than this share of it.
        max_passes: stop after so many passes in any case.
    """
    bias_c = np.zeros(len(prior_c))
    for _ in range(max_passes):
        ratio_c = corpus_marginal(bias_c).mean_c / prior_c
        if np.all(np.abs(ratio_c - 1) <= tolerance):
            break
        bias_c += np.log(np.maximum(ratio_c, 1e-12))
        bias_c -= bias_c.mean()  # a constant changes nothing: keep the numbers small
    return bias_c
