"""Dropout with cheap random numbers."""

import pytest
import torch

from llkd.config.student import StudentConfig
from llkd.student.dropout import ByteDropout, use_byte_dropout
from llkd.student.model import load_student


def test_a_share_is_dropped_and_the_expectation_stays() -> None:
    torch.manual_seed(0)
    ones = torch.ones(101, 1003, requires_grad=True)
    found = ByteDropout(0.1)(ones)
    # 26 of 256 levels are dropped, the others scaled by 256 / 230
    assert found.detach().unique().tolist() == pytest.approx([0.0, 256 / 230])
    found.sum().backward()
    found = found.detach()
    assert float((found == 0).float().mean()) == pytest.approx(26 / 256, abs=0.005)
    assert float(found.mean()) == pytest.approx(1.0, abs=0.01)
    assert ones.grad is not None
    assert torch.equal(ones.grad, found)


def test_each_draw_is_another_and_the_seed_fixes_it() -> None:
    ones, dropout = torch.ones(64, 64), ByteDropout(0.5)
    torch.manual_seed(3)
    first, second = dropout(ones), dropout(ones)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(ones))
    both = ((first == 0) & (second == 0)).float().mean()
    assert both == pytest.approx(0.25, abs=0.03)
    columns = (first == 0).float().mean(dim=0)  # no column of the bytes of a draw is special
    assert 0.2 < columns.min() < columns.max() < 0.8


def test_outside_of_training_nothing_is_dropped() -> None:
    ones = torch.ones(8, 8)
    assert torch.equal(ByteDropout(0.5).eval()(ones), ones)
    assert torch.equal(ByteDropout(0.0)(ones), ones)


def test_a_model_gets_it_in_all_places(tiny_student: str) -> None:
    _, model = load_student(StudentConfig(model=tiny_student), ["a", "b"])
    before = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    use_byte_dropout(model)
    after = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert [m.p for m in after] == before
    assert {type(m) for m in after if m.p > 0} == {ByteDropout}
