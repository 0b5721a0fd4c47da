"""Cut the user's files into shards of rows, and reject unusable rows.

A shard covers `rows_per_shard` consecutive rows of the source, so any worker can write any shard, and
its rows do not depend on the number of workers.
"""

import bisect
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from llkd.cluster.integrity import last_records, read_record
from llkd.cluster.progress import throttled
from llkd.cluster.shard_tasks import run_on_shards
from llkd.cluster.stage import ShardedStage
from llkd.cluster.telemetry import ShardDone, Work, announce
from llkd.config.run import RunConfig
from llkd.config.sources import CorpusConfig, SourceConfig, TestConfig, section_of
from llkd.errors import DataError, FingerprintError, RejectLimitError
from llkd.ingest.files import SourceFile, list_files
from llkd.ingest.gold_rows import gold_identity, other_columns, probability_of
from llkd.ingest.sources import SourceRow, as_text, check_columns, count_rows, read_rows
from llkd.store.folder import Folder, portable_path
from llkd.store.manifest import FILES, Manifest, begun
from llkd.store.schema import (
    GOLD,
    ID,
    PROBABILITY,
    REJECTS_SCHEMA,
    ROW,
    TEXT,
    RunLayout,
    corpus_schema,
    shard_starts,
)

TEST_ROWS_PER_SHARD = 4096
"""Rows per shard of every data set but the corpus."""


@dataclass(frozen=True)
class ShardPlan:
    """A source cut into shards."""

    dataset: str
    """`corpus`, `test`, `gold` or `predict/NAME`."""
    source: SourceConfig
    files: tuple[SourceFile, ...]
    starts: tuple[int, ...]
    """Position of each file's first row among all rows; the last entry is the number of rows."""
    rows_per_shard: int

    @property
    def rows(self) -> int:
        """The number of rows of the source."""
        return self.starts[-1]

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.rows // self.rows_per_shard)

    def rows_of(self, shard: int) -> int:
        """The number of source rows that a shard covers."""
        return min(self.rows_per_shard, self.rows - shard * self.rows_per_shard)

    def pieces(self, shard: int) -> Iterator[tuple[SourceFile, int, int]]:
        """The row ranges that make up a shard, as (file, start, stop)."""
        low = shard * self.rows_per_shard
        high = low + self.rows_of(shard)
        number = bisect.bisect_right(self.starts, low) - 1
        while self.starts[number] < high:
            first, end = self.starts[number], self.starts[number + 1]
            if first < end:
                yield self.files[number], max(low - first, 0), min(high, end) - first
            number += 1


def ingest(config: RunConfig, dataset: str, tracker: Any) -> Manifest:
    """Write the missing shards of a data set from its source.

    Args:
        config: the run.
        dataset: `corpus`, `test`, `gold` or `predict/NAME`.
        tracker: the progress tracker.

    Raises:
        DataError: the source is unreadable or has no rows.
        FingerprintError: the run directory was made from another source.
        IncompleteError: a shard or some of its rows are missing.
        RejectLimitError: too many rows are unusable.
    """
    started = time.monotonic()
    layout = RunLayout(config.run_dir)
    source = config.source(dataset)
    assert source is not None
    stage = ShardedStage(
        Folder(layout.rows(dataset)),
        manifest_of(config, dataset),
        Folder(layout.rejects(f"ingest-{dataset}")),
    )
    if stage.complete:
        return stage.manifest
    tracker.doing.remote(f"ingest {dataset}: counting rows")
    plan = _plan(source, dataset)
    _check_plan(stage.folder, plan)
    _write_missing(config, plan, stage, tracker)
    counts = stage.counts([plan.rows_of(shard) for shard in range(plan.shards)])
    reasons: Counter[str] = Counter()
    for shard in counts:
        reasons.update(shard.rejects)
    _require_few_rejects(config, plan, reasons)
    results = {
        "rows": [shard.rows for shard in counts],
        "rejects": dict(reasons),
        "seconds": time.monotonic() - started,
    }
    crcs = {**stage.crcs(), FILES: stage.folder.crc32(FILES)}
    _require_unchanged(stage.folder, crcs, plan)
    return stage.close(results, crcs)


def _write_missing(config: RunConfig, plan: ShardPlan, stage: ShardedStage, tracker: Any) -> None:
    """Write the missing shards in Ray tasks."""
    layout, labels = RunLayout(config.run_dir), config.task.label_names
    missing = stage.missing(plan.shards)
    skipped = min((plan.shards - len(missing)) * plan.rows_per_shard, plan.rows)
    tracker.begin.remote(f"ingest {plan.dataset}", plan.rows, skipped)
    work = Work(layout.name, "ingest", plan.dataset)
    announce(tracker, work, missing)

    def write(shard: int) -> dict[str, Any]:
        started = time.monotonic()
        written = _write_shard(plan, shard, labels, layout)
        seconds = time.monotonic() - started
        done = ShardDone(work, shard, written["rows"], seconds, written["rejects"])
        # Ray may end a task's process before it has sent a call, unless the task waits for it.
        ray.wait([tracker.shard.remote(done)])
        return written

    update, done = partial(tracker.update.remote, "shards"), 0
    update_rarely = throttled(update)
    for shard, written in run_on_shards(write, missing):
        stage.add(shard, written)
        done += written["rows"] + sum(written["rejects"].values())
        update_rarely(done)
    update(done)


def _require_unchanged(folder: Folder, crcs: dict[str, int], plan: ShardPlan) -> None:
    """Compare shards that replace damaged ones with the records of the damaged ones.

    Raises:
        DataError: the content of a shard differs from the one that it replaces.
    """
    known = last_records(folder)
    changed = [name for name in crcs if name in known and known[name].crc != crcs[name]]
    if changed:
        raise DataError(
            f"{folder.uri}/{changed[0]} was damaged, and its replacement from "
            f"{section_of(plan.dataset)}.path differs: those files have changed, or another "
            "version of pyarrow writes shards differently.",
            f"Restore the files and delete {changed[0]}, or delete {folder.uri} and all later "
            "stages to ingest the files as they are now.",
        )


def manifest_of(config: RunConfig, dataset: str) -> Manifest:
    """The manifest of a data set's shards: the settings that determine them."""
    source = config.source(dataset)
    assert source is not None
    section = section_of(dataset)
    settings = {f"{section}.{key}": value for key, value in source.model_dump(mode="json").items()}
    settings[f"{section}.path"] = [portable_path(path) for path in source.paths]
    if source.label_column is not None:
        settings["task.labels"] = config.task.label_names
    if dataset == "gold":  # a few rows, to which people add
        settings["gold.rows"] = gold_identity(source, section, config.task.label_names)
        for setting in ("relabel", "train", "judge"):
            del settings[f"gold.{setting}"]
    return Manifest("ingest", settings, upstream="")


def _plan(source: SourceConfig, dataset: str) -> ShardPlan:
    """List, check and count the files of a source."""
    section = section_of(dataset)
    files = list_files(source, section)

    def count(number: int) -> dict[str, Any]:
        check_columns(files[number], source, section, other_columns(source))
        return {"rows": count_rows(files[number], source)}

    # Checked here first: a wrong column fails at once and without a worker's traceback.
    check_columns(files[0], source, section, other_columns(source))
    counts = {
        number: counted["rows"] for number, counted in run_on_shards(count, range(len(files)))
    }
    rows = [counts[number] for number in range(len(files))]
    if not any(rows):
        raise DataError(f"{section}.path: {source.path} holds no rows")
    starts = (*shard_starts(rows), sum(rows))
    per_shard = source.rows_per_shard if isinstance(source, CorpusConfig) else TEST_ROWS_PER_SHARD
    return ShardPlan(dataset, source, tuple(files), starts, per_shard)


def _check_plan(folder: Folder, plan: ShardPlan) -> None:
    """Record the source files; on resuming, compare them with the record.

    Raises:
        DataError: a file differs, and a damaged shard must be read from it again.
        FingerprintError: a file differs and the stage is incomplete.
    """
    section = section_of(plan.dataset)
    now = [
        [portable_path(file.uri), file.size, end - start]
        for file, start, end in zip(plan.files, plan.starts, plan.starts[1:], strict=False)
    ]
    if not begun(folder) or not folder.exists(FILES):
        folder.write_json(FILES, now)
        return
    pairs = itertools.zip_longest(folder.read_json(FILES), now)
    changed = next(((old, new) for old, new in pairs if old != new), None)
    if changed is None:
        return
    difference = "[file, bytes, rows] was {}, now {}".format(*changed)
    if read_record(folder) is not None:
        raise DataError(
            f"A shard of {folder.uri} is damaged and cannot be read again, because the files of "
            f"{section}.path have changed: {difference}.",
            "Restore the files, or delete that folder and all later stages to ingest the files "
            "as they are now.",
        )
    raise FingerprintError(
        f"The files of {section}.path have changed since {folder.uri} was begun: {difference}.",
        "Delete that folder to ingest the files as they are now.",
    )


def _write_shard(
    plan: ShardPlan, shard: int, labels: list[str], layout: RunLayout
) -> dict[str, Any]:
    """Write the usable rows of one shard and its rejects."""
    classes = {name: index for index, name in enumerate(labels)}
    with_id = plan.source.id_column is not None
    with_gold = plan.source.label_column is not None
    others = other_columns(plan.source)
    kept: list[tuple[str, str | None, int | None, float | None]] = []
    rejected: list[dict[str, Any]] = []
    for file, start, stop in plan.pieces(shard):
        for row in read_rows(file, plan.source, start, stop, others):
            text, reason, detail = usable_text(row)
            if text is None:
                rejected.append(
                    {"stage": "ingest", "shard": shard, "row": row.number, "source": file.uri,
                     "id": as_text(row.id), "reason": reason, "detail": detail}
                )  # fmt: skip
                continue
            gold = _gold_class(row, classes, file, plan) if with_gold else None
            probability = probability_of(row, file, others[0]) if others else None
            kept.append((text, as_text(row.id), gold, probability))
    if rejected:
        Folder(layout.rejects(f"ingest-{plan.dataset}")).write_shard(
            shard, pa.Table.from_pylist(rejected, schema=REJECTS_SCHEMA)
        )
    columns: dict[str, Any] = {ROW: range(len(kept)), TEXT: [text for text, *_ in kept]}
    if with_id:
        columns[ID] = [identifier for _, identifier, *_ in kept]
    if with_gold:
        columns[GOLD] = [gold for _, _, gold, _ in kept]
    if others:
        columns[PROBABILITY] = [probability for *_, probability in kept]
    crc = Folder(layout.rows(plan.dataset)).write_shard(
        shard, pa.table(columns, schema=corpus_schema(with_id, with_gold, bool(others)))
    )
    return {"rows": len(kept), "rejects": Counter(row["reason"] for row in rejected), "crc": crc}


def usable_text(row: SourceRow) -> tuple[str | None, str | None, str | None]:
    """The text of a row as (text, None, None), or why it is rejected as (None, reason, detail)."""
    if row.reason is not None:
        return None, row.reason, row.detail
    text = row.text
    if text is None:
        return None, "missing", "the text is null or the row lacks the column"
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            return None, "not_utf8", str(error)[:200]
    if not isinstance(text, str):
        return None, "not_text", f"a value of type {type(text).__name__}"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can encode lone surrogates
        return None, "not_utf8", str(error)[:200]
    if "\x00" in text:
        return None, "nul_byte", "the text contains a NUL byte"
    if not text.strip():
        return None, "empty", "the text is empty or white space"
    return text, None, None


def _gold_class(
    row: SourceRow, classes: dict[str, int], file: SourceFile, plan: ShardPlan
) -> int | None:
    """The class index of a gold label; None for a null label, which a test set must not have."""
    name = as_text(row.gold)
    where = f"{file.uri}, row {row.number + 1}, column {plan.source.label_column!r}"
    if not name:
        if isinstance(plan.source, TestConfig):
            raise DataError(
                f"{where}: the gold label is missing",
                "Label the row or remove it, and run the same command again.",
            )
        return None
    if name not in classes:
        raise DataError(
            f"{where}: label {name!r} is not one of task.labels ({', '.join(classes)})",
            "Spell task.labels as in the file.",
        )
    return classes[name]


def _require_few_rejects(config: RunConfig, plan: ShardPlan, reasons: Counter[str]) -> None:
    """Check the number of rejected rows.

    Raises:
        RejectLimitError: more rows are rejected than the config allows, or all.
    """
    rejected = reasons.total()
    if rejected > config.max_reject_fraction * plan.rows or rejected == plan.rows:
        folder = Folder(RunLayout(config.run_dir).rejects(f"ingest-{plan.dataset}"))
        raise RejectLimitError(
            f"{rejected:,} of {plan.rows:,} {plan.dataset} rows are unusable ({dict(reasons)}), "
            f"more than max_reject_fraction = {config.max_reject_fraction} allows. They are "
            f"listed in {folder.uri}."
        )
