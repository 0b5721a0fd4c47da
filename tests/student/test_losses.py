"""What rows cost, by numbers worked out by hand."""

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


def test_hard() -> None:
    assert losses() == pytest.approx([-log(0.8), -log(0.5)])


def test_label_smoothing() -> None:
    # 0.2 of the label spread over two: 0.9 of its own, 0.1 of the other
    expected = [-0.9 * log(0.8) - 0.1 * log(0.2), -log(0.5)]
    assert losses(label_smoothing=0.2) == pytest.approx(expected)


def test_soft() -> None:
    # KL of (1/2, 1/2) from (0.8, 0.2); of a certain teacher from (1/2, 1/2)
    expected = [0.5 * log(0.5 / 0.8) + 0.5 * log(0.5 / 0.2), log(2)]
    assert losses(kind="soft") == pytest.approx(expected)


def test_soft_with_a_temperature() -> None:
    # at T = 2 the student's 0.8 : 0.2 becomes 2 : 1; T squared is 4
    expected = 4 * (0.5 * log(0.5 * 3 / 2) + 0.5 * log(0.5 * 3 / 1))
    assert losses(kind="soft", temperature=2.0)[0] == pytest.approx(expected)


def test_mix() -> None:
    hard, soft = losses(), losses(kind="soft")
    expected = [0.75 * h + 0.25 * s for h, s in zip(hard, soft, strict=True)]
    assert losses(kind="mix", soft_share=0.25) == pytest.approx(expected)


def test_generalised_cross_entropy() -> None:
    # q = 1: one minus the probability; q = 1/2: 2 (1 - root)
    assert losses(kind="gce", q=1.0) == pytest.approx([0.2, 0.5])
    assert losses(kind="gce", q=0.5) == pytest.approx([2 - 2 * 0.8**0.5, 2 - 2 * 0.5**0.5])
    assert losses(kind="gce", q=1e-3) == pytest.approx(losses(), abs=1e-3)


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
