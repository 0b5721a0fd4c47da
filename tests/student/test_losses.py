"""Losses by row, by numbers worked out by hand."""

from math import log
from typing import Any

import pytest
import torch

from llkd.config.selection import LossSettings
from llkd.config.student import StudentConfig
from llkd.student.losses import row_losses

LOGITS = torch.tensor([[log(0.8), log(0.2)], [log(0.5), log(0.5)]])
LABELS = torch.tensor([0, 1])
TARGETS = torch.tensor([[0.5, 0.5], [1.0, 0.0]])


def losses(**settings: Any) -> list[float]:
    found: list[float] = row_losses(LOGITS, LABELS, TARGETS, LossSettings(**settings)).tolist()
    return found


HARD = [-log(0.8), -log(0.5)]
# KL of (1/2, 1/2) from (0.8, 0.2); of a certain teacher from (1/2, 1/2)
SOFT = [0.5 * log(0.5 / 0.8) + 0.5 * log(0.5 / 0.2), log(2)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, HARD),
        # 0.2 of the label spread over two: 0.9 of its own, 0.1 of the other
        ({"label_smoothing": 0.2}, [-0.9 * log(0.8) - 0.1 * log(0.2), -log(0.5)]),
        ({"kind": "soft"}, SOFT),
        # at T = 2 the student's 0.8 : 0.2 becomes 2 : 1; T squared is 4
        (
            {"kind": "soft", "temperature": 2.0},
            [4 * (0.5 * log(0.5 * 3 / 2) + 0.5 * log(0.5 * 3 / 1)), 4 * log(2)],
        ),
        (
            {"kind": "mix", "soft_share": 0.25},
            [0.75 * h + 0.25 * s for h, s in zip(HARD, SOFT, strict=True)],
        ),
        # q = 1: one minus the probability; q = 1/2: 2 (1 - root)
        ({"kind": "gce", "q": 1.0}, [0.2, 0.5]),
        ({"kind": "gce", "q": 0.5}, [2 - 2 * 0.8**0.5, 2 - 2 * 0.5**0.5]),
    ],
)
def test_losses_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    assert losses(**settings) == pytest.approx(expected)


def test_generalised_cross_entropy_approaches_cross_entropy() -> None:
    assert losses(kind="gce", q=1e-3) == pytest.approx(HARD, abs=1e-3)


def test_no_loss_is_infinite_where_the_student_is_certain() -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    for kind in ("soft", "mix", "gce"):
        settings = LossSettings.model_validate({"kind": kind})
        loss = row_losses(logits, torch.tensor([1]), torch.tensor([[0.0, 1.0]]), settings).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_a_kind_alone_is_a_loss() -> None:
    assert StudentConfig.model_validate({"model": "-", "loss": "gce"}).loss.kind == "gce"
    assert StudentConfig(model="-").loss == LossSettings()
