"""Whether memory, open files and threads stay where they are while a long corpus is labelled.

The label stage as it is, on a local Ray, over thousands of small shards of a made-up corpus. The
teacher costs nothing; in some of its calls it raises what no engine should, so that its actor dies
and is replaced, and it refuses some rows. Every second the driver and the actors are looked at.

An actor's growth is measured within its own life, by a line through the samples of each process
that differ in their height alone; the driver's by a line after the first quarter of the shards.
"""

import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from llkd.config.load import parse_config
from llkd.config.run import RunConfig, TaskConfig, TeacherConfig
from llkd.errors import IncompleteError
from llkd.store.folder import Folder
from llkd.store.schema import ROW, RunLayout
from llkd.teacher.engine import LabelBatch

SAMPLE_SECONDS = 1.0
WARM_SHARDS = 100
"""Shards that are labelled in an actor's life before its memory is taken to have settled."""
FEWEST_SAMPLES = 20
"""Of settled processes: by fewer nothing is said."""
MOST_MIB = 10.0
"""Growth of a process in 1,000 shards above which its memory is not flat."""
MOST_FILES = 20.0
"""The same of open files and of threads: lives of a few hundred shards differ by some."""


class EnduranceTeacher:
    """The same log-probability of every label, at once.

    engine_args: `fail` and `refuse`, shares of the calls and of the texts, drawn by their hash; a
    call that failed once goes well the next time, which it knows by a file in the folder `failed`.
    """

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        self._classes = len(task.labels)
        self._arguments = teacher.engine_args

    def label(
        self, texts: Sequence[str], ids: Sequence[Any], progress: Callable[[int], None]
    ) -> LabelBatch:
        """See Engine.label."""
        self._fail(texts[0])
        refused = {
            i: "refused" for i, text in enumerate(texts) if _draw(text) < self._arguments["refuse"]
        }
        progress(len(texts))
        probability = np.full((len(texts), self._classes), 1 / self._classes)
        return LabelBatch(np.log(probability).astype(np.float32), refused)

    def _fail(self, text: str) -> None:
        if _draw(f"call {text}") >= self._arguments["fail"]:
            return
        marker = Path(self._arguments["failed"], hashlib.sha256(text.encode()).hexdigest())
        if not marker.exists():
            marker.touch()
            raise RuntimeError("this call fails")


def _draw(text: str) -> float:
    """A number in [0, 1) of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) / 2**32


@dataclass(frozen=True)
class Sample:
    """What a process had at a moment."""

    shards: int
    """Shards that were labelled by then."""
    process: str
    """`driver`, or `actor` and its process id."""
    mib: float
    """Resident memory."""
    files: int
    """Open file descriptors."""
    threads: int


def benchmark_endurance(
    shards: int, rows_per_shard: int, fail: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure.

    Args:
        shards: of the corpus.
        rows_per_shard: of each of them.
        fail: share of the calls that fail; 0 gives actors that live to the end.
        say: prints a line of progress.

    Returns:
        `growth`, MiB, files and threads in 1,000 shards, of the `driver` and the `actors`, None
        after too few samples; `flat`, whether all is known and within `bounds`; `failed` calls, `rejected` rows, `actors`, `seconds`,
        and the `samples`.

    Raises:
        IncompleteError: a row is neither labelled nor rejected, or both, or twice.
    """
    from llkd.cluster import connection

    folder = Path(tempfile.mkdtemp(prefix="llkd-benchmark-"))
    connection.connect()
    try:
        return measure(make_config(folder, shards, rows_per_shard, fail), say)
    finally:
        connection.disconnect()
        shutil.rmtree(folder)


def make_config(folder: Path, shards: int, rows_per_shard: int, fail: float) -> RunConfig:
    """A run over a corpus that it writes."""
    texts = [f"text {number}" for number in range(shards * rows_per_shard)]
    pq.write_table(pa.table({"text": texts}), folder / "corpus.parquet", row_group_size=8192)
    failed = folder / "failed"
    failed.mkdir()
    return parse_config(
        {
            "run_dir": str(folder / "run"),
            "task": {"instruction": "-", "labels": ["a", "b", "c"]},
            "corpus": {"path": str(folder / "corpus.parquet"), "rows_per_shard": rows_per_shard},
            "teacher": {
                "engine": "llkd.lab.benchmarks.endurance:EnduranceTeacher",
                "model": "-",
                "replicas": [2, 2],
                "resources": {"CPU": 0.5},
                "engine_args": {"fail": fail, "refuse": 0.01, "failed": str(failed)},
            },
            "student": {"model": "-"},
        }
    )


def measure(config: RunConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """What `benchmark_endurance` does, on the Ray that is there."""
    from llkd.cluster.display import ProgressDisplay
    from llkd.ingest.stage import ingest
    from llkd.teacher.stage import label

    with ProgressDisplay(Console()) as display:
        rows = ingest(config, "corpus", display.tracker).results["rows"]
        started = time.perf_counter()
        with Watch(RunLayout(config.run_dir).labels("corpus")) as watch:
            label(config, ["corpus"], display.tracker)
        seconds = time.perf_counter() - started
    rejected = check_rows(config, rows)
    failed = len(list(Path(config.teacher.engine_args["failed"]).iterdir()))
    say(f"{len(rows):,} shards in {seconds:.0f} s, {failed} calls failed, {rejected} rows refused")
    return {
        **summary(watch.samples, len(rows)),
        "shards": len(rows), "rows": sum(rows), "rejected": rejected, "failed": failed,
        "seconds": seconds, "samples": [asdict(sample) for sample in watch.samples],
    }  # fmt: skip


def check_rows(config: RunConfig, rows: Sequence[int]) -> int:
    """See that every row is labelled or rejected, once; returns how many are rejected."""
    layout = RunLayout(config.run_dir)
    labels, rejects = Folder(layout.labels("corpus")), Folder(layout.label_rejects("corpus"))
    refused, rejected = rejects.shards(), 0
    for shard, count in enumerate(rows):
        found = labels.read_shard(shard, [ROW])[ROW].to_pylist()
        if shard in refused:
            left_out = rejects.read_shard(shard, [ROW])[ROW].to_pylist()
            rejected += len(left_out)
            found += left_out
        if sorted(found) != list(range(count)):
            raise IncompleteError(
                f"Shard {shard} of {labels.uri}: {len(found)} rows labelled or rejected, "
                f"{len(set(found))} of them different, of {count}"
            )
    return rejected


class Watch:
    """Looks at this process and Ray's actors every second, in a block."""

    def __init__(self, labels: str) -> None:
        self.samples: list[Sample] = []
        self._labels = Path(labels)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        me = psutil.Process()
        while not self._stop.wait(SAMPLE_SECONDS):
            done = sum(name.startswith("part-") for name in _names(self._labels))
            self.samples.append(_sample(me, "driver", done))
            for child in me.children(recursive=True):
                try:
                    name = (child.cmdline() or [""])[0]
                    if name.startswith("ray::MapWorker"):
                        self.samples.append(_sample(child, f"actor {child.pid}", done))
                except psutil.Error:  # it has just ended
                    continue


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.exists() else []


def _sample(process: Any, name: str, done: int) -> Sample:
    with process.oneshot():
        mib = process.memory_info().rss / 2**20
        return Sample(done, name, mib, process.num_fds(), process.num_threads())


def summary(samples: Sequence[Sample], shards: int) -> dict[str, Any]:
    """Growth in 1,000 shards, and whether it is within bounds.

    Args:
        samples: of all processes, in the order of time.
        shards: of the corpus.
    """
    driver = [each for each in samples if each.process == "driver" and each.shards >= shards / 4]
    lives: dict[str, list[Sample]] = {}
    for each in samples:
        if each.process != "driver":
            lives.setdefault(each.process, []).append(each)
    actors = [
        [each for each in life if each.shards >= life[0].shards + WARM_SHARDS]
        for life in lives.values()
    ]
    growth = {"driver": _growth([driver]), "actors": _growth(actors)}
    bounds = {"mib": MOST_MIB, "files": MOST_FILES, "threads": MOST_FILES}
    flat = all(
        found is not None and all(found[name] <= most for name, most in bounds.items())
        for found in growth.values()
    )
    return {"growth": growth, "bounds": bounds, "flat": flat, "actors": len(lives)}


def _growth(lives: Sequence[Sequence[Sample]]) -> dict[str, float] | None:
    """The slopes, in 1,000 shards, common to some processes; None where there are too few samples."""
    if sum(map(len, lives)) < FEWEST_SAMPLES:
        return None
    found = {}
    for name in ("mib", "files", "threads"):
        above, squares = 0.0, 0.0
        for life in filter(None, lives):
            shard_n = np.array([each.shards for each in life], dtype=np.float64)
            value_n = np.array([getattr(each, name) for each in life], dtype=np.float64)
            away_n = shard_n - shard_n.mean()
            above += float((away_n * value_n).sum())
            squares += float((away_n**2).sum())
        found[name] = 1000 * above / max(squares, 1.0)
    return found


def table(result: Mapping[str, Any]) -> str:
    """The figures, for people."""
    lines = [f"{'in 1,000 shards':>16}{'MiB':>9}{'files':>9}{'threads':>9}"]
    for process, found in result["growth"].items():
        cells = [f"{value:9.2f}" for value in found.values()] if found else ["  too few samples"]
        lines.append(f"{process:>16}" + "".join(cells))
    verdict = "flat" if result["flat"] else "NOT FLAT"
    lines.append(
        f"{verdict}: {result['shards']:,} shards in {result['seconds']:.0f} s, "
        f"{result['failed']} calls failed, {result['actors']} actors"
    )
    return "\n".join(lines)


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Memory and open files against the shards done, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    panels = figure.subplots(1, 2)
    lives: dict[str, list[Mapping[str, Any]]] = {}
    for sample in result["samples"]:
        lives.setdefault(sample["process"], []).append(sample)
    for process, life in lives.items():
        look = {"color": "C0"} if process == "driver" else {"color": "C1", "alpha": 0.6}
        for panel, name in zip(panels, ("mib", "files"), strict=True):
            panel.plot([each["shards"] for each in life], [each[name] for each in life], **look)
    panels[0].set(xlabel="shards done", ylabel="resident memory, MiB")
    panels[1].set(xlabel="shards done", ylabel="open files")
    for panel in panels:
        panel.set_ylim(bottom=0)
        panel.set_title("driver (blue), actors (orange)", fontsize="small")
    figure.savefig(path, dpi=120, format="png")
