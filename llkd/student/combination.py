"""The combination of teacher and probe that rows labelled by hand ask for.

    r ∝ p^α · q^β · exp(−bias)

as in llkd/core/refinement.py, with exponents and bias that maximise the likelihood of the gold labels.
A few rows know little, so the result is drawn to what holds without them: the squared distances of
the bias and of log α and log β from their start are penalised, as by a normal prior with variance 1.
Without gold rows the start remains.

Vector scaling (arXiv 1706.04599) of a logarithmic opinion pool.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from llkd.core.refinement import logs, product, refined


@dataclass(frozen=True)
class Combination:
    """Exponents and bias; C classes."""

    alpha: float
    """Exponent of the teacher."""
    beta: float
    """Exponent of the probe; 0 leaves it out."""
    bias_c: np.ndarray
    """Shape (C,)."""

    def apply(self, teacher_nc: np.ndarray, student_nc: np.ndarray) -> np.ndarray:
        """r, float64, shape (N, C); rows sum to 1.

        Args:
            teacher_nc: p, shape (N, C).
            student_nc: q, shape (N, C).
        """
        return refined(product(teacher_nc, student_nc, self.beta, self.alpha), self.bias_c)


def fit_combination(
    teacher_mc: np.ndarray, student_mc: np.ndarray, label_m: np.ndarray, start: Combination
) -> Combination:
    """The combination for rows with gold labels.

    Args:
        teacher_mc: the teacher's distributions of M gold rows, shape (M, C).
        student_mc: the probes', each by probes that have not seen the row, shape (M, C).
        label_m: gold classes, integers, shape (M,).
        start: what holds without gold rows; exponents above 0, but beta may be 0 and stays so.
    """
    teacher = start.alpha * torch.from_numpy(logs(teacher_mc))
    student = start.beta * torch.from_numpy(logs(student_mc))
    begin, label = torch.from_numpy(start.bias_c), torch.from_numpy(label_m.astype(np.int64))
    log_scale = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    shift = torch.zeros_like(begin, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_scale, shift], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        scale = log_scale.exp()
        logits = scale[0] * teacher + scale[1] * student - begin - shift
        penalty = (log_scale.square().sum() + shift.square().sum()) / 2
        loss = cross_entropy(logits, label, reduction="sum") + penalty
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    alpha, beta = (log_scale.detach().exp() * torch.tensor([start.alpha, start.beta])).tolist()
    return Combination(alpha, beta, (begin + shift.detach()).numpy())
