"""Cut the caller's files into shards of rows, and set aside what cannot be used.

A shard covers `rows_per_shard` consecutive rows of the source, so that any worker can make any
shard, and the rows of a shard do not depend on how many workers there are.
"""

import bisect
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from llkd.cluster.integrity import close_stage, lost_files, read_record, shard_crcs
from llkd.cluster.progress import throttled
from llkd.cluster.shard_tasks import run_on_shards
from llkd.cluster.telemetry import ShardDone, Work, announce
from llkd.config.run import RunConfig
from llkd.config.sources import CorpusConfig, SourceConfig, TestConfig, section_of
from llkd.errors import DataError, FingerprintError, IncompleteError, RejectLimitError
from llkd.ingest.sources import (
    SourceFile,
    SourceRow,
    as_text,
    check_columns,
    count_rows,
    list_files,
    read_rows,
)
from llkd.store.folder import Folder, portable_path
from llkd.store.manifest import FILES, Manifest, begun, open_stage
from llkd.store.rejects import delete_shards, require_all_told
from llkd.store.schema import GOLD, ID, REJECTS_SCHEMA, ROW, TEXT, RunLayout, corpus_schema

TEST_ROWS_PER_SHARD = 4096


@dataclass(frozen=True)
class ShardPlan:
    """A source cut into shards."""

    dataset: str
    """`corpus`, `test`, `validation` or `predict/NAME`."""
    source: SourceConfig
    files: tuple[SourceFile, ...]
    starts: tuple[int, ...]
    """Position of each file's first row among all rows; one more entry for the end."""
    rows_per_shard: int

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.starts[-1] // self.rows_per_shard)

    def rows_of(self, shard: int) -> int:
        """How many rows of the source a shard covers."""
        return min(self.rows_per_shard, self.starts[-1] - shard * self.rows_per_shard)

    def pieces(self, shard: int) -> Iterator[tuple[SourceFile, int, int]]:
        """(file, start, stop) of the row ranges that make up a shard."""
        low = shard * self.rows_per_shard
        high = min(low + self.rows_per_shard, self.starts[-1])
        number = bisect.bisect_right(self.starts, low) - 1
        while self.starts[number] < high:
            first, end = self.starts[number], self.starts[number + 1]
            if first < end:
                yield self.files[number], max(low - first, 0), min(high, end) - first
            number += 1


def ingest(config: RunConfig, dataset: str, tracker: Any) -> Manifest:
    """Make the shards of a data set from its source; shards that are there are left alone.

    Args:
        config: the run.
        dataset: `corpus`, `test`, `validation` or `predict/NAME`.
        tracker: the progress tracker.

    Raises:
        DataError: the source cannot be read, or has no usable rows.
        FingerprintError: the run directory was made from another source.
        RejectLimitError: too many rows are unusable.
    """
    started = time.monotonic()
    layout = RunLayout(config.run_dir)
    folder = Folder(layout.rows(dataset))
    source = config.source(dataset)
    assert source is not None
    rejects = Folder(layout.rejects(f"ingest-{dataset}"))
    if not begun(folder):
        rejects.delete()  # of shards that were deleted
    manifest = open_stage(folder, manifest_of(config, dataset))
    if manifest.complete:
        return manifest

    tracker.doing.remote(f"ingest {dataset}: the files are counted")
    plan = _plan(source, dataset)
    _check_plan(folder, plan)
    missing = sorted(set(range(plan.shards)) - folder.shards())
    delete_shards(rejects, rejects.shards().intersection(missing))
    tracker.begin.remote(
        f"ingest {dataset}",
        plan.starts[-1],
        min((plan.shards - len(missing)) * plan.rows_per_shard, plan.starts[-1]),
    )
    labels, of = config.task.label_names, Work(layout.name, "ingest", dataset)
    announce(tracker, of, missing)

    def work(shard: int) -> dict[str, Any]:
        begun_at = time.monotonic()
        result = _write_shard(plan, shard, labels, layout)
        seconds = time.monotonic() - begun_at
        told = ShardDone(of, shard, result["rows"], seconds, result["rejects"])
        # Ray may end the process of a task before it has sent what nobody waits for.
        ray.wait([tracker.shard.remote(told)])
        return result

    crcs: dict[int, int] = {}
    rows: dict[int, int] = {}
    reasons: Counter[str] = Counter()
    tell, done = partial(tracker.update.remote, "shards"), 0
    report = throttled(tell)
    for shard, result in run_on_shards(work, missing):
        crcs[shard], rows[shard] = result["crc"], result["rows"]
        reasons.update(result["rejects"])
        done += result["rows"] + sum(result["rejects"].values())
        report(done)
    tell(done)
    if absent := sorted(set(range(plan.shards)) - folder.shards()):
        raise IncompleteError(
            f"{folder.uri} lacks {len(absent)} of {plan.shards} shards, first {absent[0]}"
        )
    earlier = [shard for shard in range(plan.shards) if shard not in rows]
    lost = []
    for shard, result in run_on_shards(_counter(layout, dataset), earlier):
        rows[shard] = result["rows"]
        reasons.update(result["rejects"])
        if rows[shard] + sum(result["rejects"].values()) != plan.rows_of(shard):
            lost.append(shard)
    require_all_told(folder, rejects, lost)
    _require_few_rejects(config, plan, reasons, layout)
    results = {
        "rows": [rows[shard] for shard in range(plan.shards)],
        "rejects": dict(reasons),
        "seconds": time.monotonic() - started,
    }
    finished = manifest.finished(results)
    files = {**shard_crcs(folder, plan.shards, crcs), FILES: folder.crc32(FILES)}
    _require_unchanged(folder, files, plan)
    return close_stage(folder, finished, files, rejects)


def _require_unchanged(folder: Folder, crcs: dict[str, int], plan: ShardPlan) -> None:
    """See that what was damaged and made again is what it was.

    Raises:
        DataError: it is not.
    """
    known = {**(read_record(folder) or {}), **lost_files(folder)}
    changed = [name for name in crcs if name in known and known[name].crc != crcs[name]]
    if changed:
        raise DataError(
            f"{folder.uri}/{changed[0]} was damaged, and what was made in its place "
            f"from {section_of(plan.dataset)}.path holds something else: those files have "
            "changed, or another version of pyarrow writes them otherwise.",
            f"Put them back as they were and delete {changed[0]}, or delete {folder.uri} "
            "and all that was made of it to ingest them as they are now.",
        )


def manifest_of(config: RunConfig, dataset: str) -> Manifest:
    """What determines the shards of a data set."""
    source = config.source(dataset)
    assert source is not None
    section = section_of(dataset)
    settings = {f"{section}.{key}": value for key, value in source.model_dump(mode="json").items()}
    settings[f"{section}.path"] = [portable_path(path) for path in source.paths]
    if source.label_column is not None:
        settings["task.labels"] = config.task.label_names
    return Manifest("ingest", settings, upstream="")


def _plan(source: SourceConfig, dataset: str) -> ShardPlan:
    """List, check and count the files of a source."""
    section = section_of(dataset)
    files = list_files(source, section)

    def look(number: int) -> dict[str, Any]:
        check_columns(files[number], source, section)
        return {"rows": count_rows(files[number], source)}

    # A first look from here: a wrong column is told at once, and without a worker's traceback.
    check_columns(files[0], source, section)
    counts = {number: result["rows"] for number, result in run_on_shards(look, range(len(files)))}
    starts = [0]
    for number in range(len(files)):
        starts.append(starts[-1] + counts[number])
    if starts[-1] == 0:
        raise DataError(f"{section}.path: {source.path} holds no rows")
    rows = source.rows_per_shard if isinstance(source, CorpusConfig) else TEST_ROWS_PER_SHARD
    return ShardPlan(dataset, source, tuple(files), tuple(starts), rows)


def _check_plan(folder: Folder, plan: ShardPlan) -> None:
    """Keep which files the shards are cut from, and see that a resumed run finds the same.

    Raises:
        DataError: naming the first file that differs, where shards were damaged.
        FingerprintError: naming it, where not all were made yet.
    """
    now = [
        [portable_path(file.uri), file.size, end - start]
        for file, start, end in zip(plan.files, plan.starts, plan.starts[1:], strict=False)
    ]
    if not begun(folder) or not folder.exists(FILES):
        folder.write_json(FILES, now)
        return
    for old, new in itertools.zip_longest(folder.read_json(FILES), now):
        if old != new and read_record(folder) is not None:
            raise DataError(
                f"A shard of {folder.uri} is damaged, and cannot be read again: the files "
                f"of {section_of(plan.dataset)}.path have changed ([file, bytes, rows] "
                f"was {old}, now {new}).",
                "Put them back as they were, or delete that folder and all that was made "
                "of it to ingest them as they are now.",
            )
        if old != new:
            raise FingerprintError(
                f"The files of {section_of(plan.dataset)}.path have changed since "
                f"{folder.uri} was begun: [file, bytes, rows] was {old}, now {new}.",
                "Delete that folder to ingest the files as they are now.",
            )


def _write_shard(
    plan: ShardPlan, shard: int, labels: list[str], layout: RunLayout
) -> dict[str, Any]:
    """Read one shard's rows, write the usable ones and the rejects."""
    classes = {name: index for index, name in enumerate(labels)}
    with_id = plan.source.id_column is not None
    with_gold = plan.source.label_column is not None
    kept: list[tuple[str, str | None, int | None]] = []
    rejected: list[dict[str, Any]] = []
    for file, start, stop in plan.pieces(shard):
        for row in read_rows(file, plan.source, start, stop):
            text, reason, detail = usable_text(row)
            if text is None:
                rejected.append(
                    {"stage": "ingest", "shard": shard, "row": row.number, "source": file.uri,
                     "id": as_text(row.id), "reason": reason, "detail": detail}
                )  # fmt: skip
                continue
            gold = _gold_class(row, classes, file, plan) if with_gold else None
            kept.append((text, as_text(row.id), gold))
    if rejected:
        Folder(layout.rejects(f"ingest-{plan.dataset}")).write_shard(
            shard, pa.Table.from_pylist(rejected, schema=REJECTS_SCHEMA)
        )
    columns: dict[str, Any] = {ROW: range(len(kept)), TEXT: [text for text, _, _ in kept]}
    if with_id:
        columns[ID] = [identifier for _, identifier, _ in kept]
    if with_gold:
        columns[GOLD] = [gold for _, _, gold in kept]
    crc = Folder(layout.rows(plan.dataset)).write_shard(
        shard, pa.table(columns, schema=corpus_schema(with_id, with_gold))
    )
    return {"rows": len(kept), "rejects": Counter(row["reason"] for row in rejected), "crc": crc}


def usable_text(row: SourceRow) -> tuple[str | None, str | None, str | None]:
    """(text, None, None) of a row, or (None, reason, detail)."""
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
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can spell
        return None, "not_utf8", str(error)[:200]
    if "\x00" in text:
        return None, "nul_byte", "the text holds a NUL byte"
    if not text.strip():
        return None, "empty", "the text is empty or white space"
    return text, None, None


def _gold_class(
    row: SourceRow, classes: dict[str, int], file: SourceFile, plan: ShardPlan
) -> int | None:
    """The class index of a gold label; null stays null, but not where rows only serve to measure."""
    name = as_text(row.gold)
    where = f"{file.uri}, row {row.number + 1}, column {plan.source.label_column!r}"
    if not name:
        if isinstance(plan.source, TestConfig):
            raise DataError(f"{where}: the gold label is missing")
        return None
    if name not in classes:
        raise DataError(
            f"{where}: label {name!r} is not one of task.labels ({', '.join(classes)}), which "
            "must be spelt as in the file"
        )
    return classes[name]


def _counter(layout: RunLayout, dataset: str) -> Callable[[int], dict[str, Any]]:
    """What tells of a shard that an earlier command made how many rows it has, and how many were
    left out of it by reason."""
    folder, rejects = Folder(layout.rows(dataset)), Folder(layout.rejects(f"ingest-{dataset}"))
    listed = rejects.shards()

    def count(shard: int) -> dict[str, Any]:
        reasons: list[str] = []
        if shard in listed:
            reasons = rejects.read_shard(shard, ["reason"])["reason"].to_pylist()
        return {"rows": folder.shard_rows(shard), "rejects": Counter(reasons)}

    return count


def _require_few_rejects(
    config: RunConfig, plan: ShardPlan, reasons: Counter[str], layout: RunLayout
) -> None:
    """See that enough rows can be used.

    Raises:
        RejectLimitError: they cannot.
    """
    total, rejected = plan.starts[-1], reasons.total()
    if rejected > config.max_reject_fraction * total or rejected == total:
        raise RejectLimitError(
            f"{rejected:,} of {total:,} {plan.dataset} rows cannot be used ({dict(reasons)}), more "
            f"than max_reject_fraction = {config.max_reject_fraction} allows. They are listed in "
            f"{Folder(layout.rejects(f'ingest-{plan.dataset}')).uri}."
        )
