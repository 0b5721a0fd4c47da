"""Requests of a run to an object store, by stage and shard.

Two runs of different size on a synthetic corpus, against a store on 127.0.0.1 that counts. A line
through the two gives the requests for each shard and the fixed ones. Nothing is timed.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from llkd.config.load import parse_config
from llkd.config.run import RunConfig, TaskConfig, TeacherConfig
from llkd.lab.benchmarks.object_store import KINDS, ObjectStore, Request
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout, shard_name
from llkd.teacher.engine import LabelBatch

ROWS_PER_SHARD = 16
EPOCHS = 3
STAGES = ("ingest", "label", "an epoch", "distill", "evaluate", "report")
WORDS = ("goal", "phone", "market")


def benchmark_requests(
    sizes: Sequence[int], say: Callable[[str], None]
) -> dict[str, dict[str, dict[str, float]]]:
    """Count.

    Args:
        sizes: two numbers of shards.
        say: prints a line of progress.

    Returns:
        By stage and kind of request those `per_shard` and those that are `fixed`. `an epoch` is one
        of scoring, selection and training; `distill` is what comes before and after the epochs, and
        `evaluate` is without the report that it ends with.

    Raises:
        ConfigError: moto is not installed.
    """
    few, many = sorted(sizes)
    counted = {}
    for shards in (few, many):
        counted[shards] = count_run(shards)
        say(f"{shards} shards: {sum(map(Counter.total, counted[shards].values()))} requests")
    result: dict[str, dict[str, dict[str, float]]] = {}
    for stage in STAGES:
        result[stage] = {}
        for kind in KINDS:
            one, other = counted[few][stage][kind], counted[many][stage][kind]
            slope = (other - one) / (many - few)
            result[stage][kind] = {"per_shard": slope, "fixed": one - slope * few}
    return result


def count_run(shards: int) -> dict[str, Counter[str]]:
    """The requests of a run over so many shards, by stage and kind."""
    from llkd.cluster import connection

    with (
        tempfile.TemporaryDirectory(prefix="llkd-benchmark-") as folder,
        ObjectStore() as store,
        store.in_environment(),
    ):
        bucket = store.make_bucket(f"shards-{shards}")
        config = make_config(Path(folder), bucket, shards)
        connection.connect()
        try:
            run_stages(config, store)
        finally:
            connection.disconnect()
        return by_stage(store.requests, RunLayout(config.run_dir), bucket)


def run_stages(config: RunConfig, store: ObjectStore) -> None:
    """Run stage by stage; the store records the stage of each request."""
    from llkd.pipeline import run_distill, run_evaluate, run_ingest, run_label
    from llkd.results.report import write_report

    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere)
        for run in (run_ingest, run_label, run_distill, run_evaluate):
            store.stage = run.__name__.removeprefix("run_")
            run(config, console)
    store.stage = "report"
    write_report(config)


def by_stage(
    requests: Sequence[Request], layout: RunLayout, bucket: str
) -> dict[str, Counter[str]]:
    """Requests by stage and kind; `an epoch` is the last one, from one stats.json to the next."""
    counted: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
    for request in requests:
        counted.setdefault(request.stage, Counter())[request.kind] += 1
    scheme = f"{bucket.partition('://')[0]}://"
    ends = [
        max(
            number for number, request in enumerate(requests)
            if request.kind == "PUT"
            and f"{scheme}{request.path}" == f"{layout.epoch(epoch)}/stats.json"
        )
        for epoch in (EPOCHS - 2, EPOCHS - 1)
    ]  # fmt: skip
    counted["an epoch"] = Counter(r.kind for r in requests[ends[0] + 1 : ends[1] + 1])
    for kind, number in counted["an epoch"].items():
        counted["distill"][kind] -= EPOCHS * number
    counted["evaluate"].subtract(counted["report"])
    return counted


def make_config(folder: Path, bucket: str, shards: int) -> RunConfig:
    """A run in a bucket: a corpus that it writes there, a teacher that costs nothing, a tiny student."""
    rows = shards * ROWS_PER_SHARD
    gold = [WORDS[number % len(WORDS)] for number in range(rows)]
    texts = [f"{word} {number}" for number, word in enumerate(gold)]
    data = Folder(f"{bucket}/data")
    data.write_shard(0, pa.table({"text": texts, "label": gold}))
    data.write_shard(1, pa.table({"text": texts[:64], "label": gold[:64]}))
    return parse_config(
        {
            "run_dir": f"{bucket}/run",
            "task": {"instruction": "-", "labels": list(WORDS)},
            "corpus": {
                "path": f"{data.uri}/{shard_name(0)}", "rows_per_shard": ROWS_PER_SHARD,
                "label_column": "label",
            },
            "test": {"path": f"{data.uri}/{shard_name(1)}", "label_column": "label"},
            "teacher": {
                "engine": "llkd.lab.benchmarks.requests:FirstWordTeacher", "model": "-",
                "resources": {"CPU": 1}, "replicas": [1, 1],
            },
            "student": {
                "model": tiny_student(folder / "student"), "epochs": EPOCHS, "batch_size": 64,
                "max_length": 16, "workers": 1, "resources": {"CPU": 1}, "precision": "float32",
            },
        }
    )  # fmt: skip


def tiny_student(folder: Path) -> str:
    """A random encoder of some thousand weights; returns its directory."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    digits = [*"0123456789", *(f"##{digit}" for digit in "0123456789")]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *digits]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
            intermediate_size=16, max_position_embeddings=32,
        )
    ).save_pretrained(folder)  # fmt: skip
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


class FirstWordTeacher:
    """Takes the first word of a text for its label."""

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        self._labels = task.label_names

    def label(
        self, texts: Sequence[str], ids: Sequence[Any], progress: Callable[[int], None]
    ) -> LabelBatch:
        """See Engine.label."""
        probs_nc = np.full((len(texts), len(self._labels)), 0.1)
        for row, text in enumerate(texts):
            if (word := text.split()[0]) in self._labels:  # not in texts without content
                probs_nc[row, self._labels.index(word)] = 0.7
        return LabelBatch(np.log(probs_nc).astype(np.float32))


def table(result: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The figures, for people: of each kind those for a shard, and those that are fixed."""
    lines = [f"{'':10}" + "".join(f"{kind:>16}" for kind in KINDS) + f"{'all':>16}"]
    for stage, kinds in result.items():
        both = [(kinds[kind]["per_shard"], kinds[kind]["fixed"]) for kind in KINDS]
        both.append((sum(one for one, _ in both), sum(other for _, other in both)))
        lines.append(f"{stage:10}" + "".join(f"{a:8.2f} {b:+7.0f}" for a, b in both))
    return "\n".join([*lines, "each: requests a shard + requests however many shards there are"])
