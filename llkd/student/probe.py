"""A linear probe: the head of the frozen student, as softmax regression on its features.

It takes seconds, and shows what the encoder gives without fine-tuning. Its weights go into the same
model, so that a probe is a student like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import log_softmax

from llkd.student.model import head_of
from llkd.student.scoring import Scorer, scoring_copy

PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5)
"""L2 penalties that cross-validation chooses from, for features of mean squared norm 1; the strongest
first, each the start of the next."""
FOLDS = 4


class Limits(NamedTuple):
    """When a fit stops."""

    max_iter: int = 200
    tolerance_grad: float = 1e-6


EXACTLY, ROUGHLY = Limits(), Limits(50, 1e-4)
"""For a probe that is kept, and for the many of a refinement."""


@dataclass(frozen=True)
class Probe:
    """A fitted head: D features, C classes."""

    weight_cd: torch.Tensor
    bias_c: torch.Tensor
    penalty: float
    """The chosen L2 penalty."""

    def arrays(self) -> dict[str, np.ndarray]:
        """`weight`, shape (C, D), and `bias`, shape (C,), in float32; the bias is 0 for a head without
        one."""
        return {"weight": self.weight_cd.float().numpy(), "bias": self.bias_c.float().numpy()}

    def probabilities(self, features_nd: np.ndarray) -> np.ndarray:
        """Distributions over the labels: float32, shape (N, C)."""
        features = torch.from_numpy(features_nd).double()
        found = torch.softmax(features @ self.weight_cd.T + self.bias_c, dim=-1)
        return np.asarray(found.float().numpy())


class FrozenStudent:
    """A student without its head; maps texts to the features that the head reads. `bias` is whether
    that head has one."""

    def __init__(
        self, tokenizer: Any, model: Any, *, max_length: int, bfloat16: bool, device: torch.device
    ) -> None:
        """
        Args:
            tokenizer: the student's.
            model: the student; unchanged.
            max_length: maximum tokens of a text.
            bfloat16: whether weights are rounded to bfloat16, as in scoring.
            device: to compute on.
        """
        headless = scoring_copy(model, bfloat16)
        head = head_of(headless, trained=False)
        self.bias = head.bias is not None
        for module in headless.modules():
            for name, child in module.named_children():
                if child is head:
                    setattr(module, name, torch.nn.Identity())
        self._scorer = Scorer(
            tokenizer, headless.to(device), max_length=max_length, features=head.in_features
        )

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """What the head reads for N texts: float32, shape (N, D)."""
        return self._scorer.probabilities(texts)


def fit_probe(
    features_nd: np.ndarray, targets_nc: np.ndarray, seed: int, bias: bool = True
) -> Probe:
    """Softmax regression on soft labels, its L2 penalty chosen by cross-validation.

    Args:
        features_nd: frozen features, shape (N, D). Of fewer than `FOLDS` rows the strongest penalty is
            taken.
        targets_nc: distributions over the labels, shape (N, C).
        seed: of the folds.
        bias: whether the head has one; those of decoders have none.
    """
    space = Space(features_nd, bias, torch.float64)
    targets = torch.from_numpy(targets_nc).double()
    fold_n = np.random.default_rng(seed).permutation(len(targets)) % FOLDS
    penalty = best_penalty(space, targets, fold_n)
    path = fitted_path(space.rows, targets, PENALTIES[: PENALTIES.index(penalty) + 1])
    return space.probe(path[-1], penalty)


class Space:
    """Features centred and scaled to a mean squared norm of 1, with a constant for the bias."""

    def __init__(self, features_nd: np.ndarray, bias: bool, dtype: torch.dtype) -> None:
        features = torch.from_numpy(features_nd).double()
        self._mean_d = features.mean(dim=0) * float(bias)
        # Not the norm of the centred features: where texts hardly differ, their rounding errors would
        # grow.
        self._scale = float(features.square().sum(dim=1).mean().sqrt().clamp_min(1e-12))
        constant = torch.full((len(features), 1), float(bias), dtype=torch.float64)
        centred = torch.cat([(features - self._mean_d) / self._scale, constant], dim=1)
        self.rows = centred.to(dtype)

    def probe(self, weight: torch.Tensor, penalty: float) -> Probe:
        """The probe with these weights in this space, for features as they come."""
        weight_cd = weight[:, :-1].double() / self._scale
        return Probe(weight_cd, weight[:, -1].double() - weight_cd @ self._mean_d, penalty)


def best_penalty(
    space: Space, targets: torch.Tensor, fold_n: np.ndarray, limits: Limits = EXACTLY
) -> float:
    """The penalty of the smallest cross-validated loss; the strongest for fewer rows than folds."""
    losses, folds = np.zeros(len(PENALTIES)), int(fold_n.max(initial=-1)) + 1
    for fold in range(folds if len(fold_n) >= folds else 0):
        inside = torch.from_numpy(fold_n != fold)
        path = fitted_path(space.rows[inside], targets[inside], PENALTIES, limits)
        outside = space.rows[~inside], targets[~inside]
        for number, weight in enumerate(path):
            losses[number] += float(_loss(weight, *outside)) * int((~inside).sum())
    return PENALTIES[int(np.argmin(losses))]


def _loss(weight: torch.Tensor, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy with the soft labels; the last feature is constant."""
    return -(targets * log_softmax(features @ weight.T, dim=-1)).sum(dim=-1).mean()


def fitted_path(
    features: torch.Tensor,
    targets: torch.Tensor,
    penalties: Sequence[float],
    limits: Limits = EXACTLY,
) -> list[torch.Tensor]:
    """The weights for each penalty, zero without rows; the bias, in the last column, is not
    penalised."""
    weight = torch.zeros(targets.shape[1], features.shape[1], dtype=features.dtype)
    if not len(features):
        return [weight] * len(penalties)
    weight.requires_grad_(True)
    found = []
    for penalty in penalties:
        optimizer = torch.optim.LBFGS([weight], **limits._asdict(), line_search_fn="strong_wolfe")

        def closure(optimizer: Any = optimizer, penalty: float = penalty) -> torch.Tensor:
            optimizer.zero_grad()
            penalised = weight[:, :-1].square().sum() * (penalty / 2)
            loss = _loss(weight, features, targets) + penalised
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        found.append(weight.detach().clone())
    return found
