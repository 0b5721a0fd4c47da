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


def distribution(logprobs_nc: np.ndarray, bias_c: np.ndarray | None = None) -> np.ndarray:
    """p_i ∝ exp(logprob_i − bias): shape (N, C), rows sum to 1.

    Args:
        logprobs_nc: raw label log-probabilities, shape (N, C).
        bias_c: log bias of each class, shape (C,); None for no calibration.
    """
    logits_nc = np.maximum(logprobs_nc.astype(np.float64), LOWEST_LOGPROB)
    if bias_c is not None:
        logits_nc = logits_nc - bias_c
    logits_nc -= logits_nc.max(axis=1, keepdims=True)
    np.exp(logits_nc, out=logits_nc)
    logits_nc /= logits_nc.sum(axis=1, keepdims=True)
    return logits_nc


def marginal(logprobs_nc: np.ndarray, bias_c: np.ndarray) -> Marginal:
    """The statistic of one shard under a bias."""
    return Marginal(distribution(logprobs_nc, bias_c).sum(axis=0), len(logprobs_nc))


def fit_batch_bias(
    corpus_marginal: Callable[[np.ndarray], Marginal],
    classes: int,
    tolerance: float = 1e-3,
    max_passes: int = 50,
) -> np.ndarray:
    """The bias, shape (C,), under which the corpus marginal is uniform.

    Args:
        corpus_marginal: the marginal of the whole corpus under a bias; called once a pass.
        classes: C.
        tolerance: stop when no class's mean differs from 1/C by more than tolerance/C.
        max_passes: stop after so many passes in any case.
    """
    bias_c = np.zeros(classes)
    for _ in range(max_passes):
        ratio_c = corpus_marginal(bias_c).mean_c * classes
        if np.all(np.abs(ratio_c - 1) <= tolerance):
            break
        bias_c += np.log(np.maximum(ratio_c, 1e-12))
        bias_c -= bias_c.mean()  # a constant changes nothing: keep the numbers small
    return bias_c
