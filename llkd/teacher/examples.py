"""Worked examples from a labelled file: drawn at random, or nearest to each text."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from llkd.config.run import Example, ExamplesConfig, RunConfig, TaskConfig
from llkd.config.sources import SourceConfig
from llkd.errors import DataError, TeacherError
from llkd.ingest.files import list_files
from llkd.ingest.sources import as_text, check_columns, count_rows, read_rows

SETTING = "task.examples_from"
ROWS_PER_BATCH = 64
EMBEDDED_TOKENS = 256
"""Texts are truncated to this many tokens for embedding."""


def with_drawn_examples(config: RunConfig) -> RunConfig:
    """The config with examples drawn from `task.examples_from` into `task.examples`, so that the
    run's fingerprint covers their texts. With `nearest` the config is unchanged.

    Raises:
        DataError: the file cannot be read, or a label has too few rows.
    """
    source = config.task.examples_from
    if source is None or source.choose == "nearest":
        return config
    drawn = draw(labelled_rows(source, config.task), source.per_class, config.seed)
    examples = (*config.task.examples, *drawn)
    task = config.task.model_copy(update={"examples": examples, "examples_from": None})
    return config.model_copy(update={"task": task})


def labelled_rows(source: ExamplesConfig, task: TaskConfig) -> dict[str, list[Example]]:
    """The file's rows by label, in the order of `task.labels`.

    Raises:
        DataError: the file cannot be read, or has a label that is not in `task.labels`.
    """
    rows = SourceConfig(
        path=source.path, text_column=source.text_column, label_column=source.label_column
    )
    found: dict[str, list[Example]] = {name: [] for name in task.labels}
    for file in list_files(rows, SETTING):
        check_columns(file, rows, SETTING)
        for row in read_rows(file, rows, 0, count_rows(file, rows)):
            text, label = as_text(row.text), as_text(row.gold)
            if label not in found:
                raise DataError(
                    f"{SETTING}: {file.uri}, row {row.number}: label {label!r} is not one of "
                    f"task.labels ({', '.join(found)})"
                )
            if text and text.strip() and "\x00" not in text:
                found[label].append(Example(text=text, label=label))
    return found


def pool_identity(source: ExamplesConfig, task: TaskConfig) -> str:
    """A hash of the labelled rows."""
    rows = [
        (row.text, label) for label, rows in labelled_rows(source, task).items() for row in rows
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def draw(by_label: dict[str, list[Example]], per_class: int, seed: int) -> list[Example]:
    """Draw `per_class` rows of each label. Labels alternate, in a new random order each turn.

    Raises:
        DataError: a label has too few rows.
    """
    random = np.random.default_rng(seed)
    chosen: dict[str, list[Example]] = {}
    for label, rows in by_label.items():
        if len(rows) < per_class:
            raise DataError(
                f"{SETTING}: label {label!r} has {len(rows)} rows, fewer than per_class "
                f"({per_class})"
            )
        places = random.choice(len(rows), per_class, replace=False)
        chosen[label] = [rows[place] for place in places]
    labels = list(chosen)
    return [
        chosen[labels[i]][turn]
        for turn in range(per_class)
        for i in random.permutation(len(labels))
    ]


class NearestExamples:
    """The labelled rows whose embeddings are nearest to a text's."""

    def __init__(self, source: ExamplesConfig, task: TaskConfig) -> None:
        assert source.embedder is not None
        self._most = source.nearest
        self._embedder = Embedder(source.embedder)
        self._pool = [row for rows in labelled_rows(source, task).values() for row in rows]
        if not self._pool:
            raise DataError(f"{SETTING}: {source.path} contains no rows")
        self._pool_md = self._embedder.embed([row.text for row in self._pool])

    def of(self, texts: Sequence[str]) -> list[list[Example]]:
        """The examples for each text, nearest last, where it influences the model most."""
        near_nm = self._embedder.embed(texts) @ self._pool_md.T
        order_nm = np.argsort(near_nm, axis=1, kind="stable")[:, -self._most :]
        return [[self._pool[place] for place in order] for order in order_nm]


class Embedder:
    """Mean-pooled last hidden states of a transformers encoder, L2-normalised."""

    def __init__(self, model: str) -> None:
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            self._model: Any = AutoModel.from_pretrained(
                model, use_safetensors=True, trust_remote_code=False
            ).eval()
        except (OSError, ValueError) as error:
            raise TeacherError(f"{SETTING}.embedder: cannot load {model}: {error}") from error

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of N texts: float32, shape (N, D), L2-normalised."""
        import torch

        parts = []
        for start in range(0, len(texts), ROWS_PER_BATCH):
            inputs = self._tokenizer(
                list(texts[start : start + ROWS_PER_BATCH]), padding=True, truncation=True,
                max_length=EMBEDDED_TOKENS, return_tensors="pt",
            )  # fmt: skip
            with torch.inference_mode():
                hidden_btd = self._model(**inputs).last_hidden_state
            mask_bt1 = inputs["attention_mask"].unsqueeze(-1)
            mean_bd = (hidden_btd * mask_bt1).sum(1) / mask_bt1.sum(1)
            parts.append(torch.nn.functional.normalize(mean_bd, dim=-1).numpy())
        return np.concatenate(parts)
