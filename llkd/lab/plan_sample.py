"""A sample of the corpus, and what one replica of the teacher says of it."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from llkd.config.run import RunConfig
from llkd.config.sources import SourceConfig
from llkd.errors import DataError
from llkd.ingest.sources import as_text, check_columns, count_rows, list_files, read_rows
from llkd.lab.cost_model import CORPUS_FIXED
from llkd.store.folder import Folder
from llkd.store.schema import corpus_schema, shard_name
from llkd.store.scratch import scratch_folder
from llkd.teacher.engine import engine_class

BLOCKS = 16
"""Places of the corpus from which rows are sampled."""
SHOWN_PROMPTS = 2


@dataclass(frozen=True)
class Sample:
    """What the sample told; plain values, for it crosses Ray."""

    rows: int
    refused: int
    seconds: float
    logprobs_nc: list[list[float]]
    prompts: list[str]
    verbalizer: str
    prompt_tokens: list[int]
    """Tokens of each prompt; empty where the engine's tokenizer is not known."""
    text_tokens: list[int]
    """Tokens of each text before it is cut."""
    most_text_tokens: int
    computed_tokens: int
    """Tokens of all prompts beside the shared beginning, which is computed once."""


class PlanActor:
    """One replica, and the sample."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._engine = engine_class(config.teacher.engine)(config.teacher, config.task)

    def __call__(self, sampled: list[tuple[str, str | None]]) -> dict[str, Any]:
        """Label the sample, pairs of text and id."""
        engine, texts = self._engine, [text for text, _ in sampled]
        ids = [own for _, own in sampled]
        started = time.perf_counter()
        batch = engine.label(texts, ids, lambda done: None)
        seconds = time.perf_counter() - started
        kept = [i for i in range(len(texts)) if i not in batch.refused]
        told = _prompts(self._config, engine, texts)
        return {
            "rows": len(texts),
            "refused": len(batch.refused),
            "seconds": seconds,
            "logprobs_nc": batch.logprobs_nc[kept].tolist(),
            **told,
        }


def _prompts(config: RunConfig, engine: Any, texts: list[str]) -> dict[str, Any]:
    prompter = getattr(engine, "prompter", None)
    if prompter is None:
        return {
            "prompts": [], "verbalizer": "the engine's own", "prompt_tokens": [],
            "text_tokens": [], "most_text_tokens": config.teacher.max_text_tokens,
            "computed_tokens": 0,
        }  # fmt: skip
    most = engine.max_model_len
    prompts = [prompt or [] for prompt in prompter.prompts(texts, most)]
    before, _ = prompter.fixed
    asked = prompter.verbalizer.questions
    room = min(config.teacher.max_text_tokens, prompter.room(most))
    whole = prompter.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
    return {
        "prompts": [prompter.tokenizer.decode(prompt) for prompt in prompts[:SHOWN_PROMPTS]],
        "verbalizer": f"{prompter.verbalizer.name} ({prompter.reason}), "
        f"{len(asked)} {'question' if len(asked) == 1 else 'questions'} a row",
        "prompt_tokens": [len(prompt) for prompt in prompts],
        "text_tokens": [len(tokens) for tokens in whole["input_ids"]],
        "most_text_tokens": room,
        "computed_tokens": sum(max(len(prompt) - len(before), 0) for prompt in prompts),
    }


def sample_rows(
    source: SourceConfig, rows: int, seed: int
) -> tuple[int, list[tuple[str, str | None]]]:
    """(rows of the corpus, text and id of about so many of them), from places spread by seed.

    Raises:
        DataError: the corpus cannot be read, or no sampled row holds text.
    """
    files = list_files(source, "corpus")
    for file in files:
        check_columns(file, source, "corpus")
    counts = [count_rows(file, source) for file in files]
    total = sum(counts)
    starts = np.cumsum([0, *counts])
    length = -(-rows // BLOCKS)
    random = np.random.default_rng(seed)
    found: dict[str, str | None] = {}
    for place in sorted(random.choice(max(total - length, 0) + 1, BLOCKS).tolist()):
        number = int(np.searchsorted(starts, place, side="right")) - 1
        first = place - int(starts[number])
        stop = min(first + length, counts[number])
        for row in read_rows(files[number], source, first, stop):
            text = as_text(row.text)
            if text and text.strip():
                found[text] = as_text(row.id)
    if not found:
        raise DataError(f"corpus.path: no sampled row of {source.path} holds text")
    return total, list(found.items())[:rows]


def stored_bytes(sampled: list[tuple[str, str | None]], config: RunConfig) -> float:
    """Bytes of a row of the sample, as a shard of the corpus has them."""
    with_id = config.corpus.id_column is not None
    columns: dict[str, Any] = {"row": range(len(sampled)), "text": [text for text, _ in sampled]}
    if with_id:
        columns["id"] = [own for _, own in sampled]
    with scratch_folder() as directory:
        folder = Folder(str(directory))
        folder.write_shard(0, pa.table(columns, schema=corpus_schema(with_id, False)))
        size = folder.size(shard_name(0)) or 0
    return max(size - CORPUS_FIXED, 1) / len(sampled)
