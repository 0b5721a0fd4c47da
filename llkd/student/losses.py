"""Losses of the student by row, before weighting."""

import torch
from torch.nn.functional import cross_entropy, log_softmax

from llkd.config.selection import LossSettings


def row_losses(
    logits_bc: torch.Tensor,
    labels_b: torch.Tensor,
    targets_bc: torch.Tensor | None,
    settings: LossSettings,
) -> torch.Tensor:
    """Each row's loss by `student.loss`: float32, shape (B,).

    Args:
        logits_bc: the student's, shape (B, C).
        labels_b: pseudo-labels, shape (B,).
        targets_bc: the teacher's distributions, shape (B, C); None if the loss does not use them.
        settings: the settings `student.loss`.
    """
    logits_bc = logits_bc.float()
    if settings.kind == "gce":
        return generalised_cross_entropy(logits_bc, labels_b, settings.q)
    hard_b = cross_entropy(
        logits_bc, labels_b, reduction="none", label_smoothing=settings.label_smoothing
    )
    if not settings.uses_targets:
        return hard_b
    assert targets_bc is not None
    soft_b = distillation(logits_bc, targets_bc, settings.temperature)
    share = settings.soft_share if settings.kind == "mix" else 1.0
    return (1.0 - share) * hard_b + share * soft_b


def distillation(
    logits_bc: torch.Tensor, targets_bc: torch.Tensor, temperature: float
) -> torch.Tensor:
    """T² · KL(p_T ‖ q_T), both distributions softened by the temperature T: shape (B,).

    T² keeps the scale of the gradient at that of T = 1 (arXiv 1503.02531, section 2.1).

    Args:
        logits_bc: the student's, shape (B, C).
        targets_bc: the teacher's distributions p, shape (B, C); p_T ∝ p^(1/T).
        temperature: T, positive.
    """
    smallest = torch.finfo(torch.float32).tiny
    teacher_bc = log_softmax(targets_bc.float().clamp_min(smallest).log() / temperature, dim=-1)
    student_bc = log_softmax(logits_bc / temperature, dim=-1)
    return temperature**2 * (teacher_bc.exp() * (teacher_bc - student_bc)).sum(dim=-1)


def generalised_cross_entropy(
    logits_bc: torch.Tensor, labels_b: torch.Tensor, q: float
) -> torch.Tensor:
    """(1 − p^q) / q of the student's probability p of the label (arXiv 1805.07836): shape (B,).

    It interpolates between cross-entropy (q → 0) and the mean absolute error (q = 1): labels that
    the student finds improbable have smaller gradients, so it learns fewer wrong ones.
    """
    log_b = log_softmax(logits_bc, dim=-1).gather(1, labels_b[:, None])[:, 0]
    return (1.0 - (q * log_b).exp()) / q
