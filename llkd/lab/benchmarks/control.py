"""What the driver does for each shard, where the work itself is nothing.

The stages as they are, on a local Ray, over a corpus of so many shards; only what is done with a
shard is replaced: it is linked to a file of one row that is there already. What is left is listing,
dispatching, collecting, adding up, manifests, checksums and the check at the start. Each size has a
process of its own, so that its memory can be told.

    ingest     stages/ingest.py: the corpus's shards
    label      stages/label.py: a pool of one actor
    select     an epoch's counts, added up over shards, kept, read, and cut among four workers
    predict    stages/predict.py: a pool of one actor
    check      what a command does first with all of it: listings, sizes and times
    queue      the shards of a scoring pass, handed out and taken back (an actor of its own in a run)
    tracker    a word on each shard, and a look at it for every thousandth (an actor of its own)
"""

import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from llkd.config.load import parse_config
from llkd.config.run import RunConfig
from llkd.core.tally import Tally
from llkd.distill.selection_counts import COUNTS, Counts
from llkd.errors import IncompleteError
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, write_manifest
from llkd.store.schema import RunLayout, shard_name

CLASSES = 2
LINKS = 10_000
"""Shards that are links to one file: file systems allow some 65,000."""
FOUND = "FOUND "
"""Before a phase's figures, on the output of the process that had it."""
WORKERS = 4
"""Training workers that an epoch's selection is cut among."""
PHASES = ("ingest", "label", "select", "predict", "check")
"""Those of the driver; the others are actors' in a run."""


def benchmark_control(sizes: Sequence[int], say: Callable[[str], None]) -> dict[str, Any]:
    """Measure.

    Args:
        sizes: shards of each made-up corpus, ascending.
        say: prints a line of progress.

    Returns:
        `sizes`, a list of `shards`, `phases` (of each `cpu` and `wall` seconds and `mib`, by which
        the process had grown), `driver_ms` of CPU a shard and `growth_mib` of all phases of the
        driver.

    Raises:
        IncompleteError: a run failed.
    """
    found = []
    for shards in sizes:
        folder = Path(tempfile.mkdtemp(prefix="llkd-benchmark-"))
        try:
            found.append(_in_a_process(folder, shards, say))
        finally:
            shutil.rmtree(folder)
        say(
            f"{shards:,} shards: {found[-1]['driver_ms']:.3f} ms of the driver each, "
            f"{found[-1]['growth_mib']:.0f} MiB more"
        )
    return {"sizes": found}


def _in_a_process(folder: Path, shards: int, say: Callable[[str], None]) -> dict[str, Any]:
    phases: dict[str, dict[str, float]] = {}
    with (folder / "log").open("w+") as log:
        work = subprocess.Popen(
            [sys.executable, "-m", "llkd.lab.benchmarks.control", str(folder), str(shards)],
            stdout=subprocess.PIPE, stderr=log, text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        )  # fmt: skip
        assert work.stdout is not None
        for line in work.stdout:
            if line.startswith(FOUND):
                name, phase = json.loads(line.removeprefix(FOUND))
                phases[name] = phase
                say(f"{shards:,} shards, {name}: {_cells(shards, phase)}")
        if work.wait() != 0:
            log.seek(0)
            raise IncompleteError(f"The run over {shards} shards failed:\n{log.read()[-4000:]}")
    return summary(shards, phases)


def summary(shards: int, phases: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The figures of one size: see `benchmark_control`."""
    seconds = sum(phases[name]["cpu"] for name in PHASES)
    return {
        "shards": shards,
        "phases": phases,
        "driver_ms": 1000 * seconds / shards,
        "growth_mib": sum(phases[name]["mib"] for name in PHASES),
    }


def make_config(folder: Path, shards: int) -> RunConfig:
    """A run over a corpus that it writes: a row for each shard."""
    texts = pa.array(["text"]).take(pa.array(np.zeros(shards, np.int8)))
    pq.write_table(pa.table({"text": texts}), folder / "corpus.parquet")
    row = pa.table(
        {"row": pa.array([0], pa.int32()), "text": pa.array(["text"], pa.large_string())}
    )
    for number in range(-(-shards // LINKS)):
        pq.write_table(row, folder / f"{number}.row")
    return parse_config(
        {
            "run_dir": str(folder / "run"),
            "task": {"instruction": "-", "labels": [f"label {i}" for i in range(CLASSES)]},
            "corpus": {"path": str(folder / "corpus.parquet"), "rows_per_shard": 1},
            "teacher": {"model": "-", "resources": {"CPU": 1}},
            "student": {"model": "-"},
            "predict": {"resources": {"CPU": 1}},
        }
    )


def _link(folder: Folder, shard: int) -> dict[str, Any]:
    """Put a file in the place of a shard; returns what the stages tell of one."""
    target = Path(folder.uri, shard_name(shard))
    target.parent.mkdir(parents=True, exist_ok=True)
    run = next(parent for parent in target.parents if parent.name == "run")
    with contextlib.suppress(FileExistsError):
        target.hardlink_to(run.parent / f"{shard // LINKS}.row")
    return {"rows": 1, "crc": shard}


def link_rows(plan: Any, shard: int, labels: list[str], layout: RunLayout) -> dict[str, Any]:
    """In the place of what ingest does with a shard."""
    return {**_link(Folder(layout.rows(plan.dataset)), shard), "rejects": {}}


class LinkingTeacher:
    """In the place of an engine and what it does with a shard."""

    def __init__(self, config: RunConfig, tracker: Any) -> None:
        self._layout, self._tracker = RunLayout(config.run_dir), tracker

    def __call__(self, item: tuple[str, int]) -> dict[str, Any]:
        """See TeacherActor."""
        dataset, shard = item
        told = _link(Folder(self._layout.labels(dataset)), shard)
        self._tracker.update.remote(f"{dataset}/{shard}", 1)
        now = time.time()
        return {"dataset": dataset, "shard": shard, **told, "label_mass": 1.0, "started": now,
                "ended": now}  # fmt: skip


class LinkingStudent:
    """In the place of a finished student and what it does with a shard."""

    def __init__(self, config: RunConfig, wanted: Any, *details: Any) -> None:
        self._folder, self._tracker = wanted.folder, details[-1]

    def __call__(self, shard: int) -> dict[str, Any]:
        """See StudentActor."""
        told = _link(self._folder, shard)
        self._tracker.update.remote(f"{shard}", 1)
        return {"shard": shard, **told, "started": time.time(), "ended": time.time()}


def tally(folder: Folder, names: Sequence[str], shard: int) -> Tally:
    """In the place of what is counted of a shard's predictions."""
    return Tally({"rows_c": np.array([1, 0]), "confidence_c": np.array([1.0, 0.0])})


def counts(shard: int) -> Counts:
    """In the place of what is selected of a shard."""
    return Counts(np.array([1, 0]), np.array([1]), 1.0)


def measure(
    folder: Path, shards: int, tell: Callable[[str, Mapping[str, float]], None]
) -> dict[str, dict[str, float]]:
    """What each phase took of this process, on the Ray that is there; told as it ends."""
    from llkd.cluster.display import ProgressDisplay
    from llkd.cluster.shard_tasks import sum_over_shards
    from llkd.ingest.stage import ingest
    from llkd.repair import mend
    from llkd.results.predict import pass_over_corpus, predict
    from llkd.student.data import portion
    from llkd.teacher.stage import label

    config = make_config(folder, shards)
    layout = RunLayout(config.run_dir)
    write_manifest(Folder(layout.student), Manifest("export", {}, "", complete=True))
    found: dict[str, dict[str, float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> None:
        found[name] = _taken(work)
        tell(name, found[name])

    def select() -> None:
        selection = Folder(layout.selection(0))
        total = sum_over_shards(Counts, counts, range(shards), reserve=False)
        selection.write_json(COUNTS, total.to_json(), indent=None)
        kept = Counts.from_json(selection.read_json(COUNTS))
        portion(kept.selected_s.tolist(), 0, WORKERS, 0)

    with ProgressDisplay(Console(file=sys.stderr)) as display, _without_work():
        # What is loaded and started at the first use only, whatever the size.
        sum_over_shards(Counts, counts, range(100), reserve=False)
        tracker = display.tracker
        timed("ingest", lambda: ingest(config, "corpus", tracker))
        timed("label", lambda: label(config, ["corpus"], tracker))
        timed("select", select)
        timed("predict", lambda: predict(config, pass_over_corpus(config), tracker))
        timed("check", lambda: mend(config, ["corpus"], print))
    timed("queue", lambda: hand_out(shards))
    timed("tracker", lambda: tell_of(shards))
    return found


@contextlib.contextmanager
def _without_work() -> Iterator[None]:
    """Stages whose work on a shard is a link."""
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


def _taken(work: Callable[[], Any]) -> dict[str, float]:
    """Do some work; returns what it took of this process."""
    import psutil

    gc.collect()
    process = psutil.Process()
    wall, cpu, mib = time.perf_counter(), time.process_time(), process.memory_info().rss
    work()
    gc.collect()
    return {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "mib": (process.memory_info().rss - mib) / 2**20,
    }


def hand_out(shards: int) -> None:
    """A scoring pass of four workers over shards of one row, as its queue sees it."""
    from llkd.distill.shard_queue import PieceQueue

    queue, values_n = PieceQueue([1] * shards, range(shards), WORKERS), np.zeros(1)
    for number in range(shards):
        piece = queue.take(number % WORKERS)
        assert piece is not None
        queue.done(piece, values_n)


def tell_of(shards: int) -> None:
    """A phase of so many units of work, as the progress tracker sees it."""
    from llkd.cluster.progress import ProgressTracker

    tracker = ProgressTracker.__ray_metadata__.modified_class()  # type: ignore[attr-defined]
    tracker.begin("phase", shards)
    for number in range(shards):
        tracker.update(f"corpus/{number}", 1)
        if number % 1000 == 0:
            tracker.since(0)


def table(result: Mapping[str, Any]) -> str:
    """The figures, for people: a line a phase."""
    sizes = result["sizes"]
    lines = [f"{'':9}" + "".join(f"{size['shards']:>26,} shards" for size in sizes)]
    for name in sizes[0]["phases"]:
        cells = ""
        for size in sizes:
            cells += _cells(size["shards"], size["phases"][name])
        lines.append(f"{name:9}{cells}")
    lines.append(
        f"{'driver':9}"
        + "".join(
            f"{size['driver_ms']:10.3f} ms{'':11}{size['growth_mib']:6.0f} MiB" for size in sizes
        )
    )
    lines.append("CPU of the process a shard, wall-clock time of the phase, growth of its memory")
    return "\n".join(lines)


def _cells(shards: int, phase: Mapping[str, float]) -> str:
    each = 1000 * phase["cpu"] / shards
    return f"{each:10.3f} ms{phase['wall']:9.1f} s{phase['mib']:6.0f} MiB"


def main(folder: str, shards: str) -> None:
    """Measure one size; print a line for each phase as it ends."""
    from llkd.cluster import connection

    def tell(name: str, phase: Mapping[str, float]) -> None:
        print(FOUND + json.dumps([name, phase]), flush=True)

    connection.connect()
    try:
        measure(Path(folder), int(shards), tell)
    finally:
        connection.disconnect()


if __name__ == "__main__":
    main(*sys.argv[1:])
