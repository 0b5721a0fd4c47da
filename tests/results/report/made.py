"""Builds run directories stage by stage with the project's own writers, without a model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from llkd.config.load import dump_config, parse_config
from llkd.config.run import RunConfig
from llkd.core.statistics import on_grid
from llkd.core.thresholds import Thresholds
from llkd.distill.epoch_stats import STATS, read_stats
from llkd.distill.policy import policy_of
from llkd.distill.pseudo_labels import make_pseudo_labels, teacher_statistics
from llkd.distill.selection import Selector
from llkd.store.arrays import fixed_lists, named
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, write_manifest
from llkd.store.schema import (
    PROBS,
    REJECTS_SCHEMA,
    UNCERTAINTY,
    UNCERTAINTY_SCHEMA,
    RunLayout,
    corpus_schema,
    labels_schema,
    predictions_schema,
    shard_starts,
    with_probs,
)
from llkd.teacher.calibrate import calibrate

Shards = Sequence[tuple[list[str], np.ndarray]]
"""(texts, gold classes) of each shard."""


def a_config(run_dir: object, names: Sequence[str], **sections: Any) -> RunConfig:
    """A config, written to run.yaml as a command would."""
    raw = {
        "run_dir": str(run_dir),
        "task": {"instruction": "Which topic?", "labels": list(names)},
        "corpus": {"path": "corpus.parquet"},
        "test": {"path": "test.parquet", "label_column": "label"},
        "teacher": {"model": "teacher"},
        "student": {"model": "student", "epochs": 2},
        **sections,
        "selection": {"refine": False, **sections.get("selection", {})},  # there is no student
    }
    config = parse_config(raw)
    Folder(str(run_dir)).write_bytes("run.yaml", dump_config(config).encode())
    return config


def ingested(config: RunConfig, dataset: str, shards: Shards) -> None:
    """Writes rows, with gold if the config names a label column."""
    layout, source = RunLayout(config.run_dir), config.source(dataset)
    assert source is not None
    folder, with_gold = Folder(layout.rows(dataset)), source.label_column is not None
    for shard, (texts, gold) in enumerate(shards):
        columns: dict[str, Any] = {"row": range(len(texts)), "text": texts}
        if with_gold:
            columns["gold"] = gold
        folder.write_shard(shard, pa.table(columns, schema=corpus_schema(False, with_gold)))
    rows = [len(texts) for texts, _ in shards]
    results = {"rows": rows, "rejects": {}, "seconds": 1.5}
    write_manifest(folder, Manifest("ingest", {}, "").finished(results))


def labelled(config: RunConfig, dataset: str, probs: Sequence[np.ndarray]) -> None:
    """Writes the teacher's distributions, (N, C) for each shard, and calibrates them."""
    folder = Folder(RunLayout(config.run_dir).labels(dataset))
    for shard, probs_nc in enumerate(probs):
        columns = {
            "row": np.arange(len(probs_nc), dtype=np.int32),
            "logprobs": fixed_lists(np.log(probs_nc) - 0.5),
            "label_mass": np.full(len(probs_nc), 0.6, dtype=np.float32),
        }
        table = pa.table(columns, schema=labels_schema(probs_nc.shape[1]))
        folder.write_shard(shard, table)
    results = {
        "rows": [len(part) for part in probs], "rejected": 0, "label_mass": 0.6, "seconds": 30.0,
        "rows_per_second": 20.0,
    }  # fmt: skip
    write_manifest(folder, Manifest("label", {}, "").finished(results))
    if dataset == "corpus":
        calibrate(config)


def trained(
    config: RunConfig, epoch: int, uncertainty: Sequence[np.ndarray], **overrides: Any
) -> dict[str, Any]:
    """Writes an epoch and selects its rows by the config's policy; returns its stats.

    Args:
        config: of the run.
        epoch: its number.
        uncertainty: the student's, (N,) for each shard, or its distributions, (N, C).
        overrides: of stats.json.
    """
    layout = RunLayout(config.run_dir)
    selector = Selector(
        config, shard_starts([len(part) for part in uncertainty]), policy_of(config)
    )
    make_pseudo_labels(config, selector.shards, calibrate(config), selector.keeps_teacher_probs)
    for shard, part in enumerate(uncertainty):
        columns: dict[str, Any] = {"row": np.arange(len(part), dtype=np.int32)}
        schema, unsure_n = UNCERTAINTY_SCHEMA, part
        if part.ndim == 2:
            schema = with_probs(schema, pa.float16(), part.shape[1])
            columns[PROBS] = fixed_lists(part, np.float16)
            unsure_n = 1 - part.max(axis=1)
        columns[UNCERTAINTY] = on_grid(unsure_n)
        Folder(layout.uncertainty(epoch)).write_shard(shard, pa.table(columns, schema=schema))
    sums = None
    if selector.policy.uses_uncertainty:
        sums = selector.uncertainty_sums(range(len(uncertainty)), epoch)
    before = None
    if epoch:
        before = Thresholds.from_json(read_stats(config, epoch - 1)["thresholds"])
    stats = selector.select(epoch, teacher_statistics(selector.config), sums, before)
    stats |= {
        "training_loss": 1.0 / (epoch + 1), "dropped": 0, "steps": 4, "passes": 1,
        "validation": None, "stopped": False,
        "seconds": {"score": 4.0, "select": 0.5, "train": 8.0},
        "waiting": {"share": 0.02, "seconds": {}}, **overrides,
    }  # fmt: skip
    Folder(layout.epoch(epoch)).write_json(STATS, stats)
    return stats


def distilled(config: RunConfig, epochs: int) -> None:
    """Writes the manifests of the finished training and of the student."""
    layout = RunLayout(config.run_dir)
    results = {
        "epochs": epochs, "epoch": epochs - 1, "seconds": 12.5 * epochs + 5, "probe": None,
        "keeps_probe": False,
    }  # fmt: skip
    write_manifest(Folder(layout.epochs), Manifest("distill", {}, "").finished(results))
    write_manifest(Folder(layout.student), Manifest("export", {}, "").finished({}))


def tested(config: RunConfig, probs: Sequence[np.ndarray]) -> None:
    """Writes the student's distributions on the test set, (N, C) for each shard."""
    predicted(config, Folder(RunLayout(config.run_dir).test_predictions), probs)


def predicted(config: RunConfig, folder: Folder, probs: Sequence[np.ndarray]) -> None:
    """Writes the student's distributions to a folder of predictions."""
    for shard, probs_nc in enumerate(probs):
        columns = {
            "row": np.arange(len(probs_nc), dtype=np.int32),
            "label": named(probs_nc.argmax(axis=1), config.task.label_names),
            "confidence": probs_nc.max(axis=1).astype(np.float32),
            "probs": fixed_lists(probs_nc),
        }
        folder.write_shard(
            shard, pa.table(columns, schema=predictions_schema(False, probs_nc.shape[1]))
        )
    results = {"rows": [len(part) for part in probs], "seconds": 2.0}
    write_manifest(folder, Manifest("predict", {}, "").finished(results))


def rejected(config: RunConfig, stage: str, rows: Sequence[dict[str, Any]], shard: int = 0) -> None:
    """Writes rows that a stage rejected."""
    unknown = dict.fromkeys(("source", "id", "detail"))
    entries = [{"stage": stage.partition("-")[0], "shard": 0, **unknown, **row} for row in rows]
    folder = Folder(RunLayout(config.run_dir).rejects(stage))
    folder.write_shard(shard, pa.Table.from_pylist(entries, schema=REJECTS_SCHEMA))


def answers(class_n: Sequence[int], sure: float, classes: int) -> np.ndarray:
    """Distributions with probability `sure` on a class, and the rest shared equally: (N, C)."""
    probs_nc = np.full((len(class_n), classes), (1 - sure) / (classes - 1))
    probs_nc[np.arange(len(class_n)), class_n] = sure
    return probs_nc
