"""Schedule, loss and checkpoints of one worker."""

from pathlib import Path

import pytest
import torch

from llkd.config import StudentConfig
from llkd.storage import Folder
from llkd.student.data import Batch
from llkd.student.model import load_student
from llkd.student.training import (
    Trainer,
    last_checkpoint,
    learning_rate_factor,
    load_checkpoint,
    save_checkpoint,
)

CPU = torch.device("cpu")
LABELS = ["sport", "tech", "trade"]


def batch(weights: list[float]) -> Batch:
    ids = torch.arange(5, 5 + 8 * len(weights)).reshape(len(weights), 8) % 20 + 5
    return Batch(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        torch.arange(len(weights)) % 3,
        torch.tensor(weights),
    )


def test_learning_rate_warms_up_and_decays() -> None:
    factors = [learning_rate_factor(p, 0.1) for p in (0, 0.05, 0.1, 0.55, 1.0)]
    assert factors == pytest.approx([0, 0.5, 1.0, 0.5, 0])
    assert learning_rate_factor(0.5, 0.0) == 0.5
    assert learning_rate_factor(1.0, 1.0) == 0.0


def test_loss_is_the_weighted_mean_of_cross_entropies(tiny_student: str) -> None:
    student = StudentConfig(model=tiny_student, learning_rate=1e-9)
    torch.manual_seed(0)
    _, model = load_student(student, LABELS)
    model.eval()  # Trainer turns dropout on: turn it off for good
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    example = batch([2.0, 0.0, 1.0])
    with torch.no_grad():
        logits = model(**example.inputs).logits
    losses = torch.nn.functional.cross_entropy(logits, example.labels_b, reduction="none")
    trainer = Trainer(model, student, CPU, bfloat16=False)
    total, rows = trainer.train([example], epoch=0, steps=1)
    assert rows == 3
    assert total == pytest.approx(float(2 * losses[0] + losses[2]), rel=1e-5)


def test_training_learns(tiny_student: str) -> None:
    student = StudentConfig(model=tiny_student, learning_rate=5e-3, epochs=2)
    torch.manual_seed(0)
    _, model = load_student(student, LABELS)
    trainer = Trainer(model, student, CPU, bfloat16=False)
    first, _ = trainer.train([batch([1.0] * 6)] * 20, epoch=0, steps=20)
    second, _ = trainer.train([batch([1.0] * 6)] * 20, epoch=1, steps=20)
    assert second < first / 2


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(tmp_path: Path, tiny_student: str) -> None:
    student = StudentConfig(model=tiny_student, learning_rate=1e-3, epochs=4)

    def fresh() -> tuple[torch.nn.Module, Trainer]:
        torch.manual_seed(0)
        _, model = load_student(student, LABELS)
        return model, Trainer(model, student, CPU, bfloat16=False)

    def epoch(trainer: Trainer, number: int) -> None:
        torch.manual_seed(number)
        trainer.train([batch([1.0] * 6)] * 3, epoch=number, steps=3)

    straight, trainer = fresh()
    epoch(trainer, 0)
    save_checkpoint(tmp_path, straight, trainer.optimizer, {"epoch": 0})
    epoch(trainer, 1)
    resumed, again = fresh()
    assert load_checkpoint(tmp_path, resumed, again.optimizer)["epoch"] == 0
    epoch(again, 1)
    for left, right in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)
    assert not list(tmp_path.glob("*.pt")) + list(tmp_path.glob("*.bin"))


def test_a_checkpoint_cut_short_does_not_count(tmp_path: Path, tiny_student: str) -> None:
    student = StudentConfig(model=tiny_student)
    _, model = load_student(student, LABELS)
    trainer = Trainer(model, student, CPU, bfloat16=False)
    trainer.train([batch([1.0])], epoch=0, steps=1)
    folder = Folder(str(tmp_path))
    assert last_checkpoint(folder) is None
    for epoch in (0, 1):
        (tmp_path / f"epoch-{epoch:04d}").mkdir()
        save_checkpoint(tmp_path / f"epoch-{epoch:04d}", model, trainer.optimizer, {"epoch": epoch})
    assert last_checkpoint(folder) == "epoch-0001"
    weights = tmp_path / "epoch-0001/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert last_checkpoint(folder) == "epoch-0000"
    (tmp_path / "epoch-0000/state.json").unlink()
    assert last_checkpoint(folder) is None
