"""Throughput of one worker of the student on a sample: scoring and training."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from llkd.cluster import actor_pool
from llkd.config.run import RunConfig
from llkd.config.selection import LossSettings
from llkd.distill.stage import worker_resources
from llkd.store.folder import Folder
from llkd.store.schema import ROW, SELECTION_SCHEMA, TEXT
from llkd.store.scratch import scratch_folder

WARM_ROWS = 32
"""Rows scored before the clock starts."""
WARM_STEPS = 2
"""Steps trained before the clock starts."""


@dataclass(frozen=True)
class StudentSample:
    """Measured throughput; plain values, since it crosses Ray."""

    score_rate: float
    """Rows a second that one worker scores."""
    train_rate: float
    """Rows a second that one worker trains on."""
    student_tokens: float
    """Mean tokens of a text as the student reads it."""
    student_parameters: int


def measure_student(config: RunConfig, texts: list[str]) -> StudentSample:
    """Score a sample and train on it with one worker of the resources that a run gives it.

    Raises:
        ResourceError: the cluster has no room for the worker.
        StudentError: the student cannot be loaded.
    """
    resources, _ = worker_resources(config)
    threads = max(int(resources.get("CPU", 1)), 1)
    (found,) = actor_pool.run_on_actors(
        StudentActor, (config, threads), [texts], pool=(1, 1), resources=resources
    )
    return StudentSample(**found)


class StudentActor:
    """One worker, which scores the sample and trains on it."""

    def __init__(self, config: RunConfig, threads: int) -> None:
        import torch

        from llkd.student.model import load_student, use_bfloat16
        from llkd.student.scoring import Scorer, scoring_copy
        from llkd.student.training import Trainer

        # The loss costs nothing beside the model, and some losses need the teacher's distributions.
        student = config.student.model_copy(update={"loss": LossSettings()})
        self._config = config
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            torch.set_num_threads(threads)
        bfloat16 = use_bfloat16(student.precision, device)
        self._tokenizer, model = load_student(student, config.task.label_names)
        self._parameters = sum(each.numel() for each in model.parameters())
        self._scorer = Scorer(
            self._tokenizer, scoring_copy(model, bfloat16).to(device),
            max_length=student.max_length, dropout_passes=config.selection.mc_dropout,
        )  # fmt: skip
        self._trainer = Trainer(model.to(device), student, device, bfloat16)

    def __call__(self, texts: list[str]) -> dict[str, Any]:
        """Score and train; returns the fields of a StudentSample."""
        from llkd.student.tokens import encode

        self._scorer.probabilities(texts[:WARM_ROWS])
        score = _rate(lambda: len(self._scorer.probabilities(texts)))
        encoded = encode(self._tokenizer, texts, self._config.student.max_length)
        with scratch_folder() as directory:
            self._train(str(directory), texts, WARM_STEPS)
            train = _rate(lambda: self._train(str(directory), texts, None))
        return {
            "score_rate": score,
            "train_rate": train,
            "student_tokens": float(np.mean([len(tokens) for tokens in encoded["input_ids"]])),
            "student_parameters": self._parameters,
        }

    def _train(self, root: str, texts: list[str], steps: int | None) -> int:
        """Train on `steps` steps of the sample (None: all of it) with arbitrary labels; returns the
        rows trained on."""
        from llkd.student.data import SelectedRows, portion
        from llkd.student.training import Schedule

        student = self._config.student
        row_n = np.arange(len(texts), dtype=np.int32)
        rows, selection = Folder(f"{root}/rows"), Folder(f"{root}/selection")
        rows.write_shard(0, pa.table({ROW: row_n, TEXT: pa.array(texts, pa.large_string())}))
        columns = {
            ROW: row_n,
            "label": row_n % len(self._config.task.labels),
            "weight": np.ones(len(texts), dtype=np.float32),
        }
        selection.write_shard(0, pa.table(columns, schema=SELECTION_SCHEMA))
        batch_size = max(student.batch_size // student.most_workers, 1)
        chosen = SelectedRows(
            rows, selection, self._tokenizer, batch_size=batch_size,
            max_length=student.max_length, micro_batch_size=student.micro_batch_size,
        )  # fmt: skip
        part = portion([len(texts)], 0, 1, self._config.seed)
        count = -(-part.rows // batch_size)
        taken = islice(chosen.steps(part, self._config.seed, weight_mean=1.0), steps)
        _, trained = self._trainer.train(taken, Schedule(0, count, 1, 0.0))
        return trained


def _rate(work: Callable[[], int]) -> float:
    """Rows a second of some work, which returns its rows."""
    started = time.perf_counter()
    rows = work()
    return rows / max(time.perf_counter() - started, 1e-9)
