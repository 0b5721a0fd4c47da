"""Stand-ins for the work on a shard: the shard becomes a link to an existing file of one row."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llkd.config.run import RunConfig
from llkd.core.tally import Tally
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout, shard_name

LINKS = 10_000
"""Links to one file: file systems allow some 65,000."""


def write_linked_rows(folder: Path, shards: int) -> None:
    """Write the files of one row that the shards become links to."""
    row = pa.table(
        {"row": pa.array([0], pa.int32()), "text": pa.array(["text"], pa.large_string())}
    )
    for number in range(-(-shards // LINKS)):
        pq.write_table(row, folder / f"{number}.row")


def _link(folder: Folder, shard: int) -> dict[str, Any]:
    """Link a shard to a file; returns its counts as the stages report them."""
    target = Path(folder.uri, shard_name(shard))
    target.parent.mkdir(parents=True, exist_ok=True)
    run = next(parent for parent in target.parents if parent.name == "run")
    with contextlib.suppress(FileExistsError):
        target.hardlink_to(run.parent / f"{shard // LINKS}.row")
    return {"rows": 1, "crc": shard}


def link_rows(plan: Any, shard: int, labels: list[str], layout: RunLayout) -> dict[str, Any]:
    """Stands in for the ingestion of a shard."""
    return {**_link(Folder(layout.rows(plan.dataset)), shard), "rejects": {}}


class LinkingTeacher:
    """Stands in for TeacherActor."""

    def __init__(self, config: RunConfig, tracker: Any) -> None:
        self._layout, self._tracker = RunLayout(config.run_dir), tracker

    def __call__(self, item: tuple[str, int]) -> dict[str, Any]:
        """See TeacherActor."""
        dataset, shard = item
        counted = _link(Folder(self._layout.labels(dataset)), shard)
        self._tracker.update.remote(f"{dataset}/{shard}", 1)
        now = time.time()
        return {"dataset": dataset, "shard": shard, **counted, "label_mass": 1.0, "started": now,
                "ended": now}  # fmt: skip


class LinkingStudent:
    """Stands in for StudentActor."""

    def __init__(self, config: RunConfig, wanted: Any, *details: Any) -> None:
        self._folder, self._tracker = wanted.folder, details[-1]

    def __call__(self, shard: int) -> dict[str, Any]:
        """See StudentActor."""
        counted = _link(self._folder, shard)
        self._tracker.update.remote(f"{shard}", 1)
        return {"shard": shard, **counted, "started": time.time(), "ended": time.time()}


def tally(folder: Folder, names: Sequence[str], shard: int) -> Tally:
    """Stands in for the counts of a shard's predictions."""
    return Tally({"rows_c": np.array([1, 0]), "confidence_c": np.array([1.0, 0.0])})


@contextlib.contextmanager
def without_work() -> Iterator[None]:
    """Replace the work on a shard by a link for the duration of the block."""
    with (
        mock.patch("llkd.ingest.stage._write_shard", link_rows),
        mock.patch("llkd.teacher.stage.TeacherActor", LinkingTeacher),
        mock.patch(
            "llkd.teacher.stage.with_machine_arguments", lambda config, resources: config.teacher
        ),
        mock.patch("llkd.teacher.stage._model_identity", return_value="-"),
        mock.patch("llkd.results.predict.StudentActor", LinkingStudent),
        mock.patch("llkd.results.predict.chosen_precision", return_value="float32"),
        mock.patch("llkd.results.predict._tally", tally),
    ):
        yield
