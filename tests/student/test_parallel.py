"""Two workers that train one student, data-parallel and sharded."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file, save_file

from llkd.config.student import StudentConfig
from llkd.errors import StudentError
from llkd.student.data import Batch
from llkd.student.parallel import (
    _layers,
    copy_weights,
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    optimizer_tensors,
    parallel_model,
)
from llkd.student.scoring import scoring_copy
from llkd.student.training import Schedule, Trainer
from tests.helpers import student_of

CPU = torch.device("cpu")
WORKERS, STEPS, ROWS = 2, 3, 4


def steps_of(rank: int) -> list[list[Batch]]:
    """Random rows by rank, the same at each call; each step in two micro-batches."""
    random = torch.Generator().manual_seed(rank)
    ids = torch.randint(5, 25, (STEPS, ROWS, 8), generator=random)
    labels = torch.randint(0, 3, (STEPS, ROWS), generator=random)
    return [
        [
            Batch(
                {"input_ids": ids[step, rows], "attention_mask": torch.ones_like(ids[step, rows])},
                labels[step, rows], torch.ones(2),
            )
            for rows in (slice(0, 2), slice(2, 4))
        ]
        for step in range(STEPS)
    ]  # fmt: skip


def fresh(model: str) -> tuple[StudentConfig, Any]:
    student = StudentConfig(model=model, learning_rate=1e-2)
    return student, student_of(student, ["a", "b", "c"], dropout=False)


def work(rank: int, model: str, folder: str) -> None:
    """A worker's run of each strategy."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORKERS
    )
    for strategy in ("ddp", "fsdp"):
        train(rank, strategy, model, Path(folder, strategy))
    torch.distributed.destroy_process_group()


def train(rank: int, strategy: str, model: str, folder: Path) -> None:
    """Train, save the state, load it into another group, and update a copy."""
    folder.mkdir(exist_ok=True)
    student, whole = fresh(model)
    copied = scoring_copy(whole, bfloat16=False)
    trained = parallel_model(whole, strategy, WORKERS, CPU)
    trainer = Trainer(trained, student, CPU, bfloat16=False)
    trainer.train(steps_of(rank), Schedule(0, STEPS, 10, 0.1))
    copy_weights(whole, copied)
    save(rank, folder, "", trained, trainer.optimizer)
    if rank == 0:
        save_file(dict(copied.state_dict()), folder / "copy")
    torch.distributed.barrier()
    student, other = fresh(model)
    again = parallel_model(other, strategy, WORKERS, CPU)
    optimizer = Trainer(again, student, CPU, bfloat16=False).optimizer
    load_model_tensors(again, load_file(folder / "weights"))
    load_optimizer_tensors(again, optimizer, load_file(folder / "moments"))
    save(rank, folder, "-again", again, optimizer)


def save(rank: int, folder: Path, suffix: str, model: Any, optimizer: Any) -> None:
    weights, moments = model_tensors(model), optimizer_tensors(model, optimizer)
    if rank == 0:
        whole = {name: tensor.contiguous() for name, tensor in weights.items()}
        save_file(whole, folder / f"weights{suffix}")
        save_file(moments, folder / f"moments{suffix}")


def test_two_workers_learn_what_one_does_and_leave_a_whole_state(
    tmp_path: Path, tiny_student: str
) -> None:
    torch.multiprocessing.spawn(work, (tiny_student, str(tmp_path)), nprocs=WORKERS, join=True)
    student, model = fresh(tiny_student)
    alone = Trainer(model, student, CPU, bfloat16=False)
    both = [a + b for a, b in zip(steps_of(0), steps_of(1), strict=True)]
    alone.train(both, Schedule(0, STEPS, 10, 0.1))
    expected = dict(model.state_dict())
    for folder in (tmp_path / "ddp", tmp_path / "fsdp"):
        weights = load_file(folder / "weights")
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(weights[name], value, atol=2e-4), name
        for name in ("weights", "moments"):
            left, right = load_file(folder / name), load_file(folder / f"{name}-again")
            assert left.keys() == right.keys()
            assert all(torch.equal(left[key], right[key]) for key in left)
        copied = load_file(folder / "copy")
        assert all(torch.equal(copied[name], weights[name]) for name in weights)


def test_a_model_without_layers_is_not_sharded() -> None:
    with pytest.raises(StudentError, match="no list of layers"):
        _layers(torch.nn.Linear(2, 2))
