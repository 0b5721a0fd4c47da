"""Schedule, loss and checkpoints of one worker."""

import shutil
from pathlib import Path

import pytest
import torch

from llkd.config.student import StudentConfig
from llkd.errors import StorageError
from llkd.store.folder import Folder
from llkd.student.checkpoints import last_checkpoint, load_checkpoint, save_checkpoint
from llkd.student.data import Batch
from llkd.student.model import load_student, without_adapters
from llkd.student.parallel import model_tensors, optimizer_tensors
from llkd.student.training import Trainer, learning_rate_factor

CPU = torch.device("cpu")
LABELS = ["sport", "tech", "trade"]


def batch(weights: list[float]) -> Batch:
    ids = torch.arange(5, 5 + 8 * len(weights)).reshape(len(weights), 8) % 20 + 5
    return Batch(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        torch.arange(len(weights)) % 3,
        torch.tensor(weights),
    )


def save(folder: Path, model: torch.nn.Module, trainer: Trainer, epoch: int) -> None:
    moments = optimizer_tensors(model, trainer.optimizer)
    save_checkpoint(folder, model_tensors(model), moments, {"epoch": epoch})


def without_dropout(student: StudentConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    _, model = load_student(student, LABELS)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # the trainer turns dropout on: turn it off for good
    return model


def test_learning_rate_warms_up_and_decays() -> None:
    factors = [learning_rate_factor(p, 0.1) for p in (0, 0.05, 0.1, 0.55, 1.0)]
    assert factors == pytest.approx([0, 0.5, 1.0, 0.5, 0])
    assert learning_rate_factor(0.5, 0.0) == 0.5
    assert learning_rate_factor(1.0, 1.0) == 0.0


def test_loss_is_the_weighted_mean_of_cross_entropies(tiny_student: str) -> None:
    student = StudentConfig(model=tiny_student, learning_rate=1e-9)
    model = without_dropout(student)
    example = batch([2.0, 0.0, 1.0])
    with torch.no_grad():
        logits = model(**example.inputs).logits
    losses = torch.nn.functional.cross_entropy(logits, example.labels_b, reduction="none")
    trainer = Trainer(model, student, CPU, bfloat16=False)
    total, rows = trainer.train([[example]], epoch=0, count=1)
    assert rows == 3
    assert total == pytest.approx(float(2 * losses[0] + losses[2]), rel=1e-5)


def test_training_learns(tiny_student: str) -> None:
    student = StudentConfig(model=tiny_student, learning_rate=5e-3, epochs=2)
    torch.manual_seed(0)
    _, model = load_student(student, LABELS)
    trainer = Trainer(model, student, CPU, bfloat16=False)
    first, _ = trainer.train([[batch([1.0] * 6)]] * 20, epoch=0, count=20)
    second, _ = trainer.train([[batch([1.0] * 6)]] * 20, epoch=1, count=20)
    assert second < first / 2


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(tmp_path: Path, tiny_student: str) -> None:
    student = StudentConfig(model=tiny_student, learning_rate=1e-3, epochs=4)

    def fresh() -> tuple[torch.nn.Module, Trainer]:
        torch.manual_seed(0)
        _, model = load_student(student, LABELS)
        return model, Trainer(model, student, CPU, bfloat16=False)

    def epoch(trainer: Trainer, number: int) -> None:
        torch.manual_seed(number)
        trainer.train([[batch([1.0] * 6)]] * 3, epoch=number, count=3)

    straight, trainer = fresh()
    epoch(trainer, 0)
    save(tmp_path, straight, trainer, 0)
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
    trainer.train([[batch([1.0])]], epoch=0, count=1)
    folder = Folder(str(tmp_path))
    assert last_checkpoint(folder) is None
    for epoch in (0, 1):
        (tmp_path / f"epoch-{epoch:04d}").mkdir()
        save(tmp_path / f"epoch-{epoch:04d}", model, trainer, epoch)
    assert last_checkpoint(folder) == "epoch-0001"
    weights = tmp_path / "epoch-0001/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert last_checkpoint(folder) == "epoch-0000"
    (tmp_path / "epoch-0000/state.json").unlink()
    assert last_checkpoint(folder) is None


def test_a_checkpoint_that_was_altered_does_not_count_when_it_is_read(
    tmp_path: Path, tiny_student: str
) -> None:
    student = StudentConfig(model=tiny_student)
    model = without_dropout(student)
    folder = Folder(str(tmp_path))
    for epoch in range(2):
        (tmp_path / f"epoch-{epoch:04d}").mkdir()
        trainer = Trainer(model, student, CPU, bfloat16=False)
        save(tmp_path / f"epoch-{epoch:04d}", model, trainer, epoch)
    assert last_checkpoint(folder, contents=True) == "epoch-0001"
    path = tmp_path / "epoch-0001/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert last_checkpoint(folder) == "epoch-0001"
    assert last_checkpoint(folder, contents=True) == "epoch-0000"
    for damage in ("{", "[]", '{"epoch": 0}'):
        (tmp_path / "epoch-0000/state.json").write_text(damage)
        assert last_checkpoint(folder, contents=True) is None


def test_a_checkpoint_that_finds_no_room_is_told(tmp_path: Path, tiny_student: str) -> None:
    student = StudentConfig(model=tiny_student)
    model = without_dropout(student)
    trainer = Trainer(model, student, CPU, bfloat16=False)
    with pytest.raises(StorageError, match=r"Cannot write a checkpoint into .*/nothing.*Make room"):
        save(tmp_path / "nothing", model, trainer, 0)


def rows_of(whole: Batch, rows: slice) -> Batch:
    inputs = {name: tensor[rows] for name, tensor in whole.inputs.items()}
    return Batch(inputs, whole.labels_b[rows], whole.weights_b[rows])


def test_accumulated_micro_batches_step_like_the_whole_batch(tiny_student: str) -> None:
    student = StudentConfig(model=tiny_student, learning_rate=1e-2)
    whole = batch([1.0, 2.0, 0.5, 1.5, 1.0])
    parts = [rows_of(whole, slice(0, 2)), rows_of(whole, slice(2, 4)), rows_of(whole, slice(4, 5))]
    found = []
    for step in ([whole], parts):
        model = without_dropout(student)
        loss, rows = Trainer(model, student, CPU, bfloat16=False).train([step] * 2, 0, count=2)
        assert rows == 10
        found.append((loss, [p.detach().clone() for p in model.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for left, right in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(left, right, atol=1e-5)


def test_gradient_checkpointing_learns_the_same(tiny_student: str) -> None:
    found = []
    for checkpointing in (False, True):
        student = StudentConfig(
            model=tiny_student, learning_rate=1e-2, gradient_checkpointing=checkpointing
        )
        model = without_dropout(student)
        Trainer(model, student, CPU, bfloat16=False).train([[batch([1.0] * 3)]] * 2, 0, count=2)
        found.append([p.detach().clone() for p in model.parameters()])
    for left, right in zip(*found, strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_adapters_are_all_that_is_trained_and_kept_and_merge_into_the_weights(
    tmp_path: Path, tiny_student: str
) -> None:
    lora = {"rank": 2, "dropout": 0.0}
    student = StudentConfig.model_validate(
        {"model": tiny_student, "learning_rate": 1e-2, "lora": lora}
    )
    model = without_dropout(student)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = Trainer(model, student, CPU, bfloat16=False)
    trainer.train([[batch([1.0] * 3)]] * 3, 0, count=3)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all("lora_" in name or "classifier" in name for name in changed)
    weights = model_tensors(model)
    assert len(weights) < len(before) / 2
    save(tmp_path, model, trainer, 0)
    again = without_dropout(student)
    load_checkpoint(tmp_path, again)
    example = batch([1.0] * 3).inputs
    with torch.no_grad():
        expected = model.eval()(**example).logits
        merged = without_adapters(again.eval())
        assert not any("lora" in name for name, _ in merged.named_parameters())
        assert torch.allclose(merged(**example).logits, expected, atol=1e-5)


def test_layers_that_the_model_came_without_are_trained_and_kept_beside_adapters(
    tmp_path: Path, tiny_student: str
) -> None:
    """A pooler that is missing is drawn anew at each load: it must not be left out."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_student, tmp_path / "bare")
    weights = load_file(tmp_path / "bare/model.safetensors")
    kept = {n: t for n, t in weights.items() if "pooler" not in n}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "bare/model.safetensors", {"format": "pt"})
    student = StudentConfig.model_validate({"model": str(tmp_path / "bare"), "lora": {"rank": 2}})
    torch.manual_seed(1)
    _, model = load_student(student, LABELS)
    trainer = Trainer(model, student, CPU, bfloat16=False)
    trainer.train([[batch([1.0] * 3)]], 0, count=1)
    (tmp_path / "checkpoint").mkdir()
    save(tmp_path / "checkpoint", model, trainer, 0)
    torch.manual_seed(2)
    _, again = load_student(student, LABELS)
    load_checkpoint(tmp_path / "checkpoint", again)
    example = batch([1.0] * 3).inputs
    with torch.no_grad():
        expected = model.eval()(**example).logits
        assert torch.allclose(without_adapters(again.eval())(**example).logits, expected, atol=1e-5)


def test_weights_that_no_text_reaches_are_frozen(tiny_student: str) -> None:
    from llkd.student.model import _freeze_unused

    tokenizer, model = load_student(StudentConfig(model=tiny_student), LABELS)
    assert all(p.requires_grad for p in model.parameters())
    model.spare = torch.nn.Linear(2, 2)
    _freeze_unused(tokenizer, model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"spare.weight", "spare.bias"}
    assert all(p.grad is None for p in model.parameters())
