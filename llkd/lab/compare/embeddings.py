"""Embeddings of the rows by the frozen student, computed once and kept as a file."""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from llkd.config.run import RunConfig
from llkd.store.arrays import fixed_lists, matrix
from llkd.store.folder import Folder
from llkd.store.manifest import require_complete
from llkd.store.model_files import model_identity
from llkd.store.schema import ROW, TEXT, RunLayout

EMBEDDING = "embedding"
TOKENS_PER_BATCH = 8192


def embeddings(config: RunConfig, dataset: str) -> np.ndarray:
    """Mean-pooled last hidden states of all rows of a data set: float32, shape (N, D).

    Cached in `<run_dir>/compare/embeddings`, a file for each student, length and data set.

    Raises:
        IncompleteError: the data set is not ingested.
        StudentError: the student cannot be loaded.
    """
    layout = RunLayout(config.run_dir)
    rows = Folder(layout.rows(dataset))
    ingested = require_complete(rows, "ingest")
    student = config.student
    identity = model_identity(student.model, student.revision, "student.model")
    key = hashlib.sha256(
        f"{identity} {student.max_length} {ingested.fingerprint}".encode()
    ).hexdigest()[:16]
    kept = Folder(layout.comparison(f"embeddings/{dataset}-{key}"))
    if not kept.shards():
        shards = range(len(ingested.results["rows"]))
        texts = [t for shard in shards for t in rows.read_shard(shard, [TEXT])[TEXT].to_pylist()]
        found_nd = embed(config, texts)
        table = {ROW: np.arange(len(texts), dtype=np.int32), EMBEDDING: fixed_lists(found_nd)}
        kept.write_shard(0, pa.table(table))
    return np.asarray(matrix(kept.read_shard(0, [EMBEDDING])[EMBEDDING]))


def embed(config: RunConfig, texts: list[str]) -> np.ndarray:
    """Mean-pooled last hidden states of a frozen student: float32, shape (N, D)."""
    import torch

    from llkd.student.model import load_student
    from llkd.student.tokens import encode, pad

    tokenizer, classifier = load_student(config.student, config.task.label_names)
    model: Any = classifier.base_model.eval()
    encoded = encode(tokenizer, texts, config.student.max_length)
    length_n = np.fromiter(map(len, encoded["input_ids"]), np.int64, count=len(texts))
    order_n, parts, done = np.argsort(-length_n, kind="stable"), [], 0
    while done < len(texts):
        row_b = order_n[done : done + max(TOKENS_PER_BATCH // int(length_n[order_n[done]]), 1)]
        inputs = pad(tokenizer, encoded, row_b)
        with torch.inference_mode():
            hidden_btd = model(**inputs).last_hidden_state.float()
        mask_bt1 = inputs["attention_mask"].unsqueeze(-1)
        parts.append(((hidden_btd * mask_bt1).sum(1) / mask_bt1.sum(1)).numpy())
        done += len(row_b)
    found_nd = np.empty((len(texts), model.config.hidden_size), dtype=np.float32)
    found_nd[order_n] = np.concatenate(parts)
    return found_nd
