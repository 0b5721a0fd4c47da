"""Time and memory of the driver for each shard.

The unmodified stages run on a local Ray; only the work on a shard is replaced: the shard becomes a
link to an existing file of one row. What remains is listing, dispatching, collecting, summing,
manifests, checksums and the check at the start. Each size runs in its own process, to measure its
memory.

    ingest     ingest/stage.py: the shards of the corpus
    label      teacher/stage.py: a pool of one actor
    select     the counts of an epoch: summed over shards, stored, read, and divided among four workers
    predict    results/predict.py: a pool of one actor
    check      the start of a command: listings, sizes and times of all files

With --fail, the label stage is whole, with a teacher that costs nothing: see `llkd.lab.benchmarks.growth`.
"""

import argparse
import contextlib
import gc
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from llkd.config.load import parse_config
from llkd.config.packages import require_packages
from llkd.config.run import RunConfig
from llkd.distill.selection_counts import COUNTS, Counts
from llkd.lab.benchmarks import growth
from llkd.lab.benchmarks.arguments import parse_sizes
from llkd.lab.benchmarks.processes import results_of, send
from llkd.lab.benchmarks.stand_ins import without_work, write_linked_rows
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, write_manifest
from llkd.store.schema import RunLayout

CLASSES = 2
WORKERS = 4
"""Training workers that share the selection of an epoch."""
FAILING_ROWS = 64
"""Rows of a shard with --fail."""

Tell = Callable[[str, Any], None]
"""Called with the name and the figures of each phase as it ends."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument(
        "--shards", type=parse_sizes, help="separated by commas (1e4,1e5; with --fail 2000)"
    )
    parser.add_argument("--fail", type=float, help="share of the calls that kill their actor")


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure as the command line says."""
    require_packages("benchmark control", "psutil", extra="dev")
    default = [10_000, 100_000] if arguments.fail is None else [2000]
    return benchmark_control(arguments.shards or default, arguments.fail, say)


def benchmark_control(
    sizes: Sequence[int], fail: float | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure.

    Args:
        sizes: shards of each synthetic corpus, ascending.
        fail: share of the calls of the teacher that fail; None to replace the work on a shard.
        say: prints a line of progress.

    Returns:
        `sizes`, a list of `shards`, `phases` (each `cpu` and `wall` seconds and `mib`, the growth of
        the process), `driver_ms` of CPU per shard and `growth_mib` of all phases; with `fail`, also the figures of `growth.watched`, as `processes`.

    Raises:
        IncompleteError: a run failed.
    """
    found = []
    for shards in sizes:
        folder, phases = Path(tempfile.mkdtemp(prefix="llkd-benchmark-")), dict[str, Any]()
        try:
            for name, phase in results_of(
                "llkd.lab.benchmarks.control", str(folder), str(shards), str(fail)
            ):
                phases[name] = phase
                if name != PROCESSES:
                    say(f"{shards:,} shards, {name}: {_cells(shards, phase)}")
        finally:
            shutil.rmtree(folder)
        found.append(summary(shards, phases))
        say(
            f"{shards:,} shards: {found[-1]['driver_ms']:.3f} ms of the driver each, "
            f"{found[-1]['growth_mib']:.0f} MiB more"
        )
    return {"sizes": found}


PROCESSES = "processes"
"""The name of the figures of `growth.watched` among those of the phases."""


def summary(shards: int, phases: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one size: see `benchmark_control`."""
    timed = {name: phase for name, phase in phases.items() if name != PROCESSES}
    return {
        "shards": shards,
        "phases": timed,
        "driver_ms": 1000 * sum(phase["cpu"] for phase in timed.values()) / shards,
        "growth_mib": sum(phase["mib"] for phase in timed.values()),
        **({PROCESSES: phases[PROCESSES]} if PROCESSES in phases else {}),
    }


def make_config(folder: Path, rows: int, rows_per_shard: int = 1, **teacher: Any) -> RunConfig:
    """A run over a corpus that it writes.

    Args:
        folder: of the corpus and the run.
        rows: of the corpus.
        rows_per_shard: of each shard.
        teacher: settings of the teacher, in place of those that need no model.
    """
    numbers = pa.array(np.arange(rows)).cast(pa.string())
    texts = pa.table({"text": pc.binary_join_element_wise("text", numbers, " ")})
    pq.write_table(
        texts,
        folder / "corpus.parquet",
        row_group_size=8192 if rows_per_shard > 1 else None,
    )
    return parse_config(
        {
            "run_dir": str(folder / "run"),
            "task": {"instruction": "-", "labels": [f"label {i}" for i in range(CLASSES)]},
            "corpus": {"path": str(folder / "corpus.parquet"), "rows_per_shard": rows_per_shard},
            "teacher": {"model": "-", "resources": {"CPU": 1}, **teacher},
            "student": {"model": "-"},
            "predict": {"resources": {"CPU": 1}},
        }
    )


def counts(shard: int) -> Counts:
    """Stands in for the selection of a shard."""
    return Counts(np.array([1, 0]), np.array([1]), 1.0)


def measure(folder: Path, shards: int, tell: Tell) -> None:
    """Measure all phases without the work on a shard, on the Ray that is connected."""
    from llkd.cluster.shard_tasks import sum_over_shards
    from llkd.ingest.stage import ingest
    from llkd.repair import repair
    from llkd.results.predict import pass_over_corpus, predict
    from llkd.student.data import portion
    from llkd.teacher.stage import label

    config = make_config(folder, shards)
    write_linked_rows(folder, shards)
    layout = RunLayout(config.run_dir)
    write_manifest(Folder(layout.student), Manifest("export", {}, "", complete=True))

    def select() -> None:
        selection = Folder(layout.selection(0))
        total = sum_over_shards(Counts, counts, range(shards), reserve=False)
        selection.write_json(COUNTS, total.to_json(), indent=None)
        kept = Counts.from_json(selection.read_json(COUNTS))
        portion(kept.selected_s.tolist(), 0, WORKERS, 0)

    with _progress() as tracker, without_work():
        # Whatever the size, the first use loads modules and starts processes.
        sum_over_shards(Counts, counts, range(100), reserve=False)
        tell("ingest", _taken(lambda: ingest(config, "corpus", tracker)))
        tell("label", _taken(lambda: label(config, ["corpus"], tracker)))
        tell("select", _taken(select))
        tell("predict", _taken(lambda: predict(config, pass_over_corpus(config), tracker)))
        tell("check", _taken(lambda: repair(config, ["corpus"], print)))


def measure_failing(
    folder: Path, shards: int, fail: float, tell: Tell, rows_per_shard: int = FAILING_ROWS
) -> RunConfig:
    """Ingest and label while a share of the calls kills its actor, on the Ray that is connected.

    Returns:
        The config of the labelled run.
    """
    from llkd.ingest.stage import ingest
    from llkd.teacher.stage import label

    failed = folder / "failed"
    failed.mkdir()
    config = make_config(
        folder, shards * rows_per_shard, rows_per_shard,
        engine="llkd.lab.benchmarks.growth:FailingTeacher", replicas=[2, 2], resources={"CPU": 0.5},
        engine_args={"fail": fail, "failed": str(failed)},
    )  # fmt: skip
    with _progress() as tracker:
        tell("ingest", _taken(lambda: ingest(config, "corpus", tracker)))

        def work() -> None:
            tell("label", _taken(lambda: label(config, ["corpus"], tracker)))

        tell(PROCESSES, growth.watched(config, work))
    return config


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    """A progress tracker that is shown on stderr."""
    from llkd.cluster.display import ProgressDisplay

    with ProgressDisplay(Console(file=sys.stderr)) as display:
        yield display.tracker


def _taken(work: Callable[[], Any]) -> dict[str, float]:
    """Do some work; returns its CPU time, wall-clock time and memory growth in this process."""
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


def table(result: Mapping[str, Any]) -> str:
    """The figures as text, a line per phase."""
    sizes = result["sizes"]
    lines = [f"{'':9}" + "".join(f"{size['shards']:>26,} shards" for size in sizes)]
    for name in sizes[0]["phases"]:
        cells = "".join(_cells(size["shards"], size["phases"][name]) for size in sizes)
        lines.append(f"{name:9}{cells}")
    lines.append(
        f"{'driver':9}"
        + "".join(
            f"{size['driver_ms']:10.3f} ms{'':11}{size['growth_mib']:6.0f} MiB" for size in sizes
        )
    )
    lines.append("CPU of the process per shard, wall-clock time of the phase, growth of its memory")
    lines += [growth.table(size[PROCESSES]) for size in sizes if PROCESSES in size]
    return "\n".join(lines)


def _cells(shards: int, phase: Mapping[str, float]) -> str:
    each = 1000 * phase["cpu"] / shards
    return f"{each:10.3f} ms{phase['wall']:9.1f} s{phase['mib']:6.0f} MiB"


def main(folder: str, shards: str, fail: str) -> None:
    """Measure one size; send each phase as it ends."""
    from llkd.cluster import connection

    def tell(name: str, phase: Any) -> None:
        send([name, phase])

    connection.connect()
    try:
        if fail == "None":
            measure(Path(folder), int(shards), tell)
        else:
            measure_failing(Path(folder), int(shards), float(fail), tell)
    finally:
        connection.disconnect()


if __name__ == "__main__":
    main(*sys.argv[1:])
