"""The common input of the student's benchmarks: the same rows, model and precision for all.

A contestant gets a folder: `texts.parquet`, the same texts as shards of a run directory, and a
student with an initialised head.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers.utils import logging

from llkd.config.run import RunConfig
from llkd.errors import DataError
from llkd.lab.benchmarks.contest import paragraphs, pieces, read_texts, write_texts
from llkd.store.folder import Folder
from llkd.store.schema import LABEL, ROW, SELECTION_SCHEMA, TEXT, WEIGHT, RunLayout, corpus_schema
from llkd.student.model import load_student, use_bfloat16

TEXTS = "texts.parquet"


def prepare(config: RunConfig, folder: Path, rows: int) -> RunConfig:
    """Fill a folder for the contestants.

    Args:
        config: of the corpus and the student.
        folder: an empty one.
        rows: number of rows: paragraphs of the corpus, or pieces of its texts if it has fewer
            paragraphs.

    Returns:
        The config of the contestants: `run_dir` is the folder, `student.model` the saved student,
        and `student.precision` a number format.

    Raises:
        DataError: the corpus has no text.
    """
    found = write_texts(config, folder / TEXTS, rows, paragraphs)
    if found < rows:
        found = write_texts(config, folder / TEXTS, rows, pieces)
    if not found:
        raise DataError("corpus.path holds no text")
    texts, layout = read_texts(folder / TEXTS), RunLayout(str(folder))
    label_n = draw_labels(config, found)
    size = config.corpus.rows_per_shard
    for shard, start in enumerate(range(0, found, size)):
        part = texts[start : start + size]
        row_n = np.arange(len(part), dtype=np.int32)
        rows_table = pa.table({ROW: row_n, TEXT: part}, schema=corpus_schema(False, False))
        selected = pa.table(
            {
                ROW: row_n,
                LABEL: label_n[start : start + size],
                WEIGHT: np.ones(len(part), dtype=np.float32),
            },
            schema=SELECTION_SCHEMA,
        )
        Folder(layout.rows("corpus")).write_shard(shard, rows_table)
        Folder(layout.selection(0)).write_shard(shard, selected)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(config.seed)
    for part_of_student in load_student(config.student, config.task.label_names):
        part_of_student.save_pretrained(folder / "student")
    bfloat16 = use_bfloat16(config.student.precision, device())
    student = config.student.model_copy(
        update={
            "model": str(folder / "student"),
            "revision": None,
            "precision": "bfloat16" if bfloat16 else "float32",
        }
    )
    return config.model_copy(update={"run_dir": str(folder), "student": student})


def draw_labels(config: RunConfig, rows: int) -> np.ndarray:
    """Random class indices to train on, one per row; they do not affect the speed."""
    rng = np.random.default_rng(config.seed)
    return rng.integers(len(config.task.labels), size=rows, dtype=np.int32)


def shard_rows(folder: Folder) -> list[int]:
    """Rows of each shard, by shard number."""
    return [folder.shard_rows(shard) for shard in sorted(folder.shards())]


def device() -> torch.device:
    """The device of all contestants."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def is_bfloat16(config: RunConfig) -> bool:
    """Whether the contestants compute in bfloat16."""
    return config.student.precision == "bfloat16"


def load_as_users_do(config: RunConfig) -> tuple[Any, Any]:
    """(tokenizer, model) loaded by transformers alone, on the device."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.student.model, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(
        config.student.model, use_safetensors=True, trust_remote_code=False
    )
    return tokenizer, model.to(device())


def describe(config: RunConfig, texts: Sequence[str], rounds: int) -> dict[str, Any]:
    """The conditions of the figures."""
    return {
        "rows": len(texts),
        "rounds": rounds,
        "precision": config.student.precision,
        "device": device().type,
        "max_length": config.student.max_length,
    }
