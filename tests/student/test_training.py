"""Schedule, loss and checkpoints of one worker."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llkd.config.student import StudentConfig
from llkd.errors import StorageError, StudentError
from llkd.store.folder import Folder
from llkd.student.checkpoints import last_checkpoint, load_checkpoint, save_checkpoint
from llkd.student.data import Batch
from llkd.student.model import load_student, without_adapters
from llkd.student.parallel import model_tensors, optimizer_tensors
from llkd.student.training import Schedule, Trainer, make_optimizer
from tests.helpers import student_of

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


def made(model: str, dropout: bool = False, **settings: Any) -> tuple[torch.nn.Module, Trainer]:
    """A student and its trainer, the same each time."""
    student = StudentConfig.model_validate({"model": model, **settings})
    loaded = student_of(student, LABELS, dropout)
    return loaded, Trainer(loaded, student, CPU, bfloat16=False)


def differ(left: torch.nn.Module, right: torch.nn.Module) -> float:
    """The largest difference of any weight."""
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def test_the_learning_rate_rises_in_the_first_epoch_and_decays_over_the_steps_of_the_run() -> None:
    first = Schedule(0, 20, 2, warmup=0.1)
    assert [first.factor(step) for step in (0, 1, 2, 19)] == pytest.approx(
        [0.25 * 39.5 / 40, 0.75 * 38.5 / 40, 37.5 / 40, 20.5 / 40]
    )
    # The second epoch is shorter than the first, and so is what is left of the run.
    second = Schedule(20, 5, 1, warmup=0.1)
    assert [second.factor(step) for step in (0, 4)] == pytest.approx([4.5 / 25, 0.5 / 25])
    assert Schedule(0, 1, 1, warmup=0.0).factor(0) == 0.5
    assert Schedule(0, 1, 1, warmup=1.0).factor(0) == 0.25


def test_an_epoch_passes_over_few_rows_several_times() -> None:
    student = StudentConfig(model="m", epochs=4, min_steps=400)
    assert [student.passes(steps, 0, 0, 4) for steps in (1, 30, 60, 99, 5000)] == [100, 3, 2, 1, 1]
    # What the first epochs had too many steps, the last ones do not need, and the reverse.
    assert [student.passes(25, taken, 2, 4) for taken in (1, 300, 350, 900)] == [4, 2, 1, 1]
    assert student.model_copy(update={"min_steps": 0}).passes(1, 0, 0, 4) == 1
    # Where later epochs train on few rows, the first takes all the steps.
    assert student.passes(30, 0, 0, 1) == 13
    assert [student.passes(1, taken, 2, 1) for taken in (390, 399, 400)] == [4, 1, 1]


@pytest.mark.parametrize(
    ("settings", "head"),
    [({}, 1e-3), ({"learning_rate": 3e-3}, 3e-3), ({"pooling": "mean"}, 2e-2),
     ({"pooling": "cls", "head_learning_rate": 5e-4}, 5e-4)],
)  # fmt: skip
def test_the_head_has_a_learning_rate_of_its_own(
    tiny_student: str, settings: dict[str, Any], head: float
) -> None:
    student = StudentConfig.model_validate({"model": tiny_student, **settings})
    model = student_of(student, LABELS)
    groups = make_optimizer(model, student).param_groups
    of_head = {id(model.classifier.weight), id(model.classifier.bias)}
    peaks = {id(p) in of_head: group["peak"] for group in groups for p in group["params"]}
    assert peaks == {True: head, False: student.learning_rate}
    trained = sum(p.requires_grad for p in model.parameters())
    assert sum(len(group["params"]) for group in groups) == trained


def test_loss_is_the_weighted_mean_of_cross_entropies(tiny_student: str) -> None:
    model, trainer = made(tiny_student, learning_rate=1e-9)
    example = batch([2.0, 0.0, 1.0])
    with torch.no_grad():
        logits = model(**example.inputs).logits
    losses = torch.nn.functional.cross_entropy(logits, example.labels_b, reduction="none")
    total, rows = trainer.train([[example]], Schedule(0, 1, 10, 0.1))
    assert rows == 3
    assert total == pytest.approx(float(2 * losses[0] + losses[2]), rel=1e-5)


def test_training_learns(tiny_student: str) -> None:
    _, trainer = made(tiny_student, dropout=True, learning_rate=5e-3, epochs=2)
    first, _ = trainer.train([[batch([1.0] * 6)]] * 20, Schedule(0, 20, 2, 0.1))
    second, _ = trainer.train([[batch([1.0] * 6)]] * 20, Schedule(20, 20, 1, 0.1))
    assert second < first / 2


@pytest.mark.parametrize("pooling", ["native", "mean"])
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, tiny_student: str, pooling: str
) -> None:
    """Also the head's own learning rate, and a layer that is not trained."""
    settings: dict[str, Any] = {
        "dropout": True, "learning_rate": 1e-3, "epochs": 4, "pooling": pooling
    }  # fmt: skip

    def epoch(trainer: Trainer, number: int) -> None:
        torch.manual_seed(number)
        trainer.train([[batch([1.0] * 6)]] * 3, Schedule(3 * number, 3, 4 - number, 0.1))

    straight, trainer = made(tiny_student, **settings)
    epoch(trainer, 0)
    save(tmp_path, straight, trainer, 0)
    epoch(trainer, 1)
    resumed, again = made(tiny_student, **settings)
    assert load_checkpoint(tmp_path, resumed, again.optimizer)["epoch"] == 0
    epoch(again, 1)
    assert differ(straight, resumed) == 0
    assert not list(tmp_path.glob("*.pt")) + list(tmp_path.glob("*.bin"))


def test_a_checkpoint_cut_short_does_not_count(tmp_path: Path, tiny_student: str) -> None:
    model, trainer = made(tiny_student)
    trainer.train([[batch([1.0])]], Schedule(0, 1, 10, 0.1))
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
    model, trainer = made(tiny_student)
    folder = Folder(str(tmp_path))
    for epoch in range(2):
        (tmp_path / f"epoch-{epoch:04d}").mkdir()
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
    model, trainer = made(tiny_student)
    with pytest.raises(StorageError, match=r"Cannot write a checkpoint into .*/nothing.*Make room"):
        save(tmp_path / "nothing", model, trainer, 0)


def rows_of(whole: Batch, rows: slice) -> Batch:
    inputs = {name: tensor[rows] for name, tensor in whole.inputs.items()}
    return Batch(inputs, whole.labels_b[rows], whole.weights_b[rows])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_micro_batches_and_gradient_checkpointing_learn_the_same(
    tiny_student: str, checkpointing: bool
) -> None:
    whole = batch([1.0, 2.0, 0.5, 1.5, 1.0])
    parts = [rows_of(whole, slice(0, 2)), rows_of(whole, slice(2, 4)), rows_of(whole, slice(4, 5))]
    plain, trainer = made(tiny_student, learning_rate=1e-2)
    expected, rows = trainer.train([[whole]] * 2, Schedule(0, 2, 10, 0.1))
    assert rows == 10
    step = [whole] if checkpointing else parts
    model, trainer = made(tiny_student, learning_rate=1e-2, gradient_checkpointing=checkpointing)
    loss, rows = trainer.train([step] * 2, Schedule(0, 2, 10, 0.1))
    assert rows == 10
    assert loss == pytest.approx(expected, rel=1e-5)
    assert differ(model, plain) < (1e-6 if checkpointing else 1e-5)


def test_adapters_are_all_that_is_trained_and_kept_and_merge_into_the_weights(
    tmp_path: Path, tiny_student: str
) -> None:
    settings: dict[str, Any] = {"learning_rate": 1e-2, "lora": {"rank": 2, "dropout": 0.0}}
    model, trainer = made(tiny_student, **settings)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer.train([[batch([1.0] * 3)]] * 3, Schedule(0, 3, 10, 0.1))
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all("lora_" in name or "classifier" in name for name in changed)
    weights = model_tensors(model)
    assert len(weights) < len(before) / 2
    save(tmp_path, model, trainer, 0)
    again, _ = made(tiny_student, **settings)
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
    """A missing pooler is initialised at random at each load: the checkpoint must hold it."""
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
    trainer.train([[batch([1.0] * 3)]], Schedule(0, 1, 10, 0.1))
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


@pytest.mark.parametrize(
    ("breaks_at", "words"),
    [
        (0, "first training step is not a finite number"),
        (2, "after 3 steps: the student has diverged"),
    ],
)
def test_training_stops_at_the_step_whose_loss_is_no_number(
    tiny_student: str, breaks_at: int, words: str
) -> None:
    model, trainer = made(tiny_student)
    taken = []

    def steps() -> Iterator[list[Batch]]:
        for step in range(6):
            if step == breaks_at:
                with torch.no_grad():
                    next(model.parameters()).fill_(float("nan"))
            taken.append(step)
            yield [batch([1.0, 1.0])]

    with pytest.raises(StudentError, match=words):
        trainer.train(steps(), Schedule(0, 6, 1, warmup=0.1))
    assert len(taken) == breaks_at + 1


def test_attention_is_computed_as_set(tiny_student: str) -> None:
    for wanted in ("eager", "sdpa"):
        student = StudentConfig.model_validate(
            {"model": tiny_student, "attn_implementation": wanted}
        )
        _, model = load_student(student, LABELS)
        assert model.config._attn_implementation == wanted
    missing = StudentConfig(model=tiny_student, attn_implementation="flash_attention_2")
    with pytest.raises(StudentError, match="cannot load"):
        load_student(missing, LABELS)
