"""Growth of memory, open files and threads while shards are labelled and actors die.

The growth of actors is the common slope of parallel lines, one per process; the driver's is the slope
after the first quarter of the shards.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llkd.config.run import RunConfig, TaskConfig, TeacherConfig
from llkd.errors import IncompleteError
from llkd.lab.benchmarks.processes import Watch
from llkd.lab.chaos.verify import labelled_once
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout
from llkd.teacher.engine import LabelBatch

SAMPLE_SECONDS = 1.0
WARM_SHARDS = 100
"""Shards after which the memory of a new actor counts as settled."""
MIN_SAMPLES = 20
"""Of settled processes; fewer give no verdict."""
BOUNDS = {"mib": 10.0, "files": 20.0, "threads": 20.0}
"""The largest growth of a process in 1,000 shards that still counts as flat. Open files and threads of
actors that live for a few hundred shards differ by some."""
REFUSED = 0.01
"""Share of the texts that the teacher refuses."""


class FailingTeacher:
    """Gives every label the same log-probability, at once.

    engine_args: `fail`, the share of the calls that fail the first time, and `failed`, a folder that
    records them. Failing calls and refused texts are drawn by their hash.
    """

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        self._classes = len(task.labels)
        self._arguments = teacher.engine_args

    def label(
        self, texts: Sequence[str], ids: Sequence[Any], progress: Callable[[int], None]
    ) -> LabelBatch:
        """See Engine.label."""
        self._fail(texts[0])
        refused = {i: "refused" for i, text in enumerate(texts) if _draw(text) < REFUSED}
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
    """A number in [0, 1), a function of the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) / 2**32


@dataclass(frozen=True)
class Sample:
    """The resources of a process at one moment."""

    shards: int
    """Shards labelled by then."""
    process: str
    """`driver`, or `worker` and its process id."""
    mib: float
    """Resident memory."""
    files: int
    """Open file descriptors."""
    threads: int


def watched(config: RunConfig, work: Callable[[], None]) -> dict[str, Any]:
    """Label the corpus by `work`, and measure the growth of the processes.

    Returns:
        See `summary`; and the `failed` calls, the `rejected` rows and the `samples`.

    Raises:
        IncompleteError: a row is neither labelled nor rejected, or both, or twice.
    """
    layout, samples = RunLayout(config.run_dir), list[Sample]()
    labels = Folder(layout.labels("corpus"))

    def sample(name: str, process: Any) -> None:
        who = name if name == "driver" else f"{name} {process.pid}"
        with process.oneshot():
            mib = process.memory_info().rss / 2**20
            samples.append(
                Sample(len(labels.shards()), who, mib, process.num_fds(), process.num_threads())
            )

    with Watch(SAMPLE_SECONDS, "ray::MapWorker", sample):
        work()
    rows = Folder(layout.rows("corpus"))
    counts = [rows.shard_rows(shard) for shard in sorted(rows.shards())]
    check_rows(config, counts)
    labelled = sum(labels.shard_rows(shard) for shard in labels.shards())
    return {
        **summary(samples, len(counts)),
        "failed": len(list(Path(config.teacher.engine_args["failed"]).iterdir())),
        "rejected": sum(counts) - labelled,
        "samples": [asdict(each) for each in samples],
    }


def check_rows(config: RunConfig, counts: Sequence[int]) -> None:
    """Check that every row of the corpus is labelled or rejected exactly once.

    Args:
        config: of a labelled run.
        counts: rows of each shard.

    Raises:
        IncompleteError: one is not.
    """
    for shard, rows in enumerate(counts):
        for problem in labelled_once(config, "corpus", shard, rows):
            raise IncompleteError(problem)


def summary(samples: Sequence[Sample], shards: int) -> dict[str, Any]:
    """The growth of the processes.

    Args:
        samples: of all processes, in the order of time.
        shards: of the corpus.

    Returns:
        `growth` of the `driver` and the `actors` in 1,000 shards, each MiB, files and threads, or None
        for too few samples; `flat`, whether all of it is known and within BOUNDS; the number of
        `actors`.
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
    growth = {"driver": _slopes([driver]), "actors": _slopes(actors)}
    flat = all(
        found is not None and all(found[name] <= bound for name, bound in BOUNDS.items())
        for found in growth.values()
    )
    return {"growth": growth, "flat": flat, "actors": len(lives)}


def _slopes(lives: Sequence[Sequence[Sample]]) -> dict[str, float] | None:
    """The slopes per 1,000 shards common to some processes; None for too few samples."""
    if sum(map(len, lives)) < MIN_SAMPLES:
        return None
    found = {}
    for name in BOUNDS:
        above, squares = 0.0, 0.0
        for life in filter(None, lives):
            shard_n = np.array([each.shards for each in life], dtype=np.float64)
            value_n = np.array([getattr(each, name) for each in life], dtype=np.float64)
            away_n = shard_n - shard_n.mean()
            above += float((away_n * value_n).sum())
            squares += float((away_n**2).sum())
        found[name] = 1000 * above / max(squares, 1.0)
    return found


def table(found: Mapping[str, Any]) -> str:
    """The figures as text."""
    lines = [f"{'in 1,000 shards':>16}{'MiB':>9}{'files':>9}{'threads':>9}"]
    for process, slopes in found["growth"].items():
        cells = [f"{value:9.2f}" for value in slopes.values()] if slopes else ["  too few samples"]
        lines.append(f"{process:>16}" + "".join(cells))
    verdict = "flat" if found["flat"] else "NOT FLAT"
    lines.append(
        f"{verdict}: {found['failed']} calls failed, {found['actors']} actors, "
        f"{found['rejected']} rows refused; every row is labelled or refused once"
    )
    return "\n".join(lines)
