"""A sample of the corpus, labelled by one replica of a teacher."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from llkd.cluster import actor_pool, connection
from llkd.config.run import RunConfig
from llkd.config.sources import SourceConfig
from llkd.errors import DataError
from llkd.ingest.files import list_files
from llkd.ingest.sources import as_text, check_columns, count_rows, read_rows
from llkd.lab.table_sizes import corpus_fixed
from llkd.store.folder import Folder
from llkd.store.schema import corpus_schema, shard_name
from llkd.store.scratch import scratch_folder
from llkd.teacher.engine import engine_class
from llkd.teacher.machine_arguments import with_machine_arguments

BLOCKS = 16
"""Blocks of neighbouring rows in a sample."""
SHOWN_PROMPTS = 2


class SampledRow(NamedTuple):
    """A row of the sample."""

    text: str
    id: str | None


@dataclass(frozen=True)
class TeacherSample:
    """The labelled sample; plain values, since it crosses Ray."""

    rows: int
    refused: int
    seconds: float
    logprobs_nc: list[list[float]]
    prompts: list[str]
    """The first ones."""
    verbalizer: str
    prompt_tokens: list[int]
    """Tokens of each prompt; empty if the engine has no prompts of its own."""
    text_tokens: list[int]
    """Tokens of each text before it is cut."""
    max_text_tokens: int
    computed_tokens: int
    """Tokens of all prompts without their shared prefix, which is computed once."""

    @property
    def cut_share(self) -> float:
        """Share of the texts that are cut."""
        cut = sum(tokens > self.max_text_tokens for tokens in self.text_tokens)
        return cut / max(len(self.text_tokens), 1)


def measure_teacher(
    config: RunConfig, sampled: Sequence[SampledRow], resources: dict[str, float]
) -> TeacherSample:
    """Label the sample with one replica of the resources that a run gives it.

    Raises:
        ResourceError: the cluster can never provide them.
        TeacherError: the teacher cannot be loaded.
    """
    nodes = config.teacher.nodes
    connection.require_resources(resources, "teacher.resources", nodes)
    teacher = with_machine_arguments(config, resources, keep=False)
    config = config.model_copy(update={"teacher": teacher})
    (found,) = actor_pool.run_on_actors(
        TeacherActor, (config,), [sampled], pool=(1, 1), resources=resources, nodes=nodes
    )
    return TeacherSample(**found)


class TeacherActor:
    """One replica, which labels the sample."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._engine = engine_class(config.teacher.engine)(config.teacher, config.task)

    def __call__(self, sampled: Sequence[SampledRow]) -> dict[str, Any]:
        """Label the sample; returns the fields of a TeacherSample."""
        texts, ids = map(list, zip(*sampled, strict=True))
        started = time.perf_counter()
        batch = self._engine.label(texts, ids, lambda done: None)
        seconds = time.perf_counter() - started
        kept = [i for i in range(len(texts)) if i not in batch.refused]
        return {
            "rows": len(texts),
            "refused": len(batch.refused),
            "seconds": seconds,
            "logprobs_nc": batch.logprobs_nc[kept].tolist(),
            **_prompts(self._config, self._engine, texts),
        }


def _prompts(config: RunConfig, engine: Any, texts: list[str]) -> dict[str, Any]:
    """The fields of a TeacherSample that describe its prompts."""
    prompter = getattr(engine, "prompter", None)
    if prompter is None:
        return {
            "prompts": [], "verbalizer": "the engine's own", "prompt_tokens": [],
            "text_tokens": [], "max_text_tokens": config.teacher.max_text_tokens,
            "computed_tokens": 0,
        }  # fmt: skip
    limit = engine.max_model_len
    prompts = [prompt or [] for prompt in prompter.prompts(texts, limit)]
    prefix, _ = prompter.fixed
    questions = len(prompter.verbalizer.questions)
    whole = prompter.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
    return {
        "prompts": [prompter.tokenizer.decode(prompt) for prompt in prompts[:SHOWN_PROMPTS]],
        "verbalizer": f"{prompter.verbalizer.name} ({prompter.reason}), "
        f"{questions} {'question' if questions == 1 else 'questions'} a row",
        "prompt_tokens": [len(prompt) for prompt in prompts],
        "text_tokens": [len(tokens) for tokens in whole["input_ids"]],
        "max_text_tokens": min(config.teacher.max_text_tokens, prompter.room(limit)),
        "computed_tokens": sum(max(len(prompt) - len(prefix), 0) for prompt in prompts),
    }


def sample_rows(source: SourceConfig, rows: int, seed: int) -> tuple[int, list[SampledRow]]:
    """(rows of the corpus, about `rows` of them with distinct texts), in blocks at random places.

    Raises:
        DataError: the corpus cannot be read, or no sampled row has text.
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
        raise DataError(
            f"corpus.path: none of the sampled rows of {source.path} has text",
            "Set corpus.text_column to the column that holds the texts, and run the command again.",
        )
    return total, [SampledRow(text, id_) for text, id_ in found.items()][:rows]


def stored_bytes(sampled: Sequence[SampledRow], config: RunConfig) -> float:
    """Bytes that a row of the sample takes in a shard of the corpus."""
    with_id = config.corpus.id_column is not None
    with_gold = config.corpus.label_column is not None
    columns: dict[str, Any] = {"row": range(len(sampled)), "text": [row.text for row in sampled]}
    if with_id:
        columns["id"] = [row.id for row in sampled]
    if with_gold:  # any classes: they take less than a byte
        columns["gold"] = [number % len(config.task.labels) for number in range(len(sampled))]
    with scratch_folder() as directory:
        folder = Folder(str(directory))
        folder.write_shard(0, pa.table(columns, schema=corpus_schema(with_id, with_gold)))
        size = folder.size(shard_name(0)) or 0
    return max(size - corpus_fixed(config), 1) / len(sampled)
