"""Rows a second of an epoch's selection, and its memory, by the size of the corpus.

The sidecars are synthetic: pseudo-labels with their confidence, and the student's uncertainty. Timed
is what the epoch loop does with them: merging the statistics of the uncertainty, computing
thresholds, and writing the selected rows. For comparison, the smaller sizes are also selected in
one process over the same files, with numpy and with polars.
"""

import argparse
import functools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llkd.config.load import parse_config
from llkd.config.packages import require_packages
from llkd.config.run import RunConfig
from llkd.core.statistics import ClassStatistics, class_statistics, on_grid
from llkd.errors import IncompleteError
from llkd.lab.benchmarks.arguments import add_rounds, parse_sizes
from llkd.lab.benchmarks.processes import Watch, results_of, send
from llkd.store.folder import Folder
from llkd.store.schema import PSEUDO_LABELS_SCHEMA, SELECTION_SCHEMA, UNCERTAINTY_SCHEMA, RunLayout

CLASSES = 6
EPOCH = 1
WHOLE_ROWS = 20_000_000
"""The largest corpus for the contestants that hold all of it in memory."""
SAMPLE_SECONDS = 0.05
LINEAR_FROM = 10_000_000
"""The smallest size whose speed the largest one's is compared to."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `run`."""
    parser.add_argument(
        "--sizes", type=parse_sizes, default="1e6,1e7,5e7,2e8", help="rows, separated by commas"
    )
    parser.add_argument("--rows-per-shard", type=int, default=65536)
    add_rounds(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a plot here (PNG)")


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure as the command line says."""
    plotting = ("matplotlib",) if arguments.plot is not None else ()
    require_packages("benchmark selection", "polars", "psutil", *plotting, extra="dev")
    result = benchmark_selection(arguments.sizes, arguments.rows_per_shard, arguments.rounds, say)
    if arguments.plot is not None:
        plot(result, arguments.plot)
    return result


def benchmark_selection(
    sizes: Sequence[int], rows_per_shard: int, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure.

    Args:
        sizes: rows of each synthetic corpus, ascending.
        rows_per_shard: of all corpora.
        rounds: number of rounds.
        say: prints a line of progress.

    Returns:
        `sizes`, a list of `rows`, `shards`, `rows_per_second` (by contestant and round) and
        `peak_mib` (of the largest worker process, and of the driver); and `ratios`.
    """
    from llkd.cluster import connection

    folder = Path(tempfile.mkdtemp(prefix="llkd-benchmark-"))
    connection.connect()
    try:
        found = [_at_size(folder, rows, rows_per_shard, rounds, say) for rows in sizes]
    finally:
        connection.disconnect()
        shutil.rmtree(folder)
    return {"sizes": found, "ratios": _ratios(found), "rows_per_shard": rows_per_shard}


def _ratios(found: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    last = found[-1]
    base = next((size for size in found if size["rows"] >= LINEAR_FROM), found[0])
    ours = {size["rows"]: _median(size, "ours") for size in found}
    ratios = {
        "rows_per_second": ours[last["rows"]],
        "linearity": ours[last["rows"]] / ours[base["rows"]],
        "peak_mib": max(size["peak_mib"]["worker"] for size in found),
    }
    compared = [size for size in found if "numpy" in size["rows_per_second"]]
    for name in ("numpy", "polars"):
        if compared:
            ratios[f"vs_{name}"] = ours[compared[-1]["rows"]] / _median(compared[-1], name)
    return ratios


def _median(size: Mapping[str, Any], name: str) -> float:
    return statistics.median(size["rows_per_second"][name])


def _at_size(
    folder: Path, rows: int, rows_per_shard: int, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    from llkd.distill.policy import policy_of
    from llkd.distill.selection import Selector
    from llkd.store.schema import shard_starts

    config = _config(str(folder / f"{rows}"))
    sizes = [min(rows_per_shard, rows - start) for start in range(0, rows, rows_per_shard)]
    started = time.perf_counter()
    make_sidecars(config, sizes)
    say(f"{rows:,} rows in {len(sizes):,} shards made in {time.perf_counter() - started:.0f} s")
    selector = Selector(config, shard_starts(sizes), policy_of(config))
    rates: dict[str, list[float]] = {"ours": []}
    contestants = ("numpy", "polars") if rows <= WHOLE_ROWS else ()
    peak_mib = {"worker": 0.0, "driver": 0.0}

    def sample(name: str, process: Any) -> None:  # shared pages, such as libraries, count in full
        peak_mib[name] = max(peak_mib[name], process.memory_info().rss / 2**20)

    with Watch(SAMPLE_SECONDS, "ray::", sample):
        for number in range(rounds):
            seconds, selected = select_once(selector)
            rates["ours"].append(rows / seconds)
            say(
                f"{rows:,} rows, round {number + 1}: {rows / seconds / 1e6:.2f} M rows/s, "
                f"{selected:,} selected"
            )
    for name in contestants:
        for _ in range(rounds):
            ((seconds, others),) = results_of("llkd.lab.benchmarks.selection", name, config.run_dir)
            if others != selected:
                raise IncompleteError(f"{name} selected {others} rows, ours {selected}")
            rates.setdefault(name, []).append(rows / seconds)
        say(f"{rows:,} rows, {name}: {statistics.median(rates[name]) / 1e6:.2f} M rows/s")
    shutil.rmtree(config.run_dir)
    return {
        "rows": rows,
        "shards": len(sizes),
        "rows_per_second": rates,
        "peak_mib": peak_mib,
    }


def _config(run_dir: str) -> RunConfig:
    """The policy that numpy and polars do in a few lines: the paper's, with `class_mean` thresholds."""
    return parse_config(
        {
            "run_dir": run_dir,
            "task": {"instruction": "-", "labels": [f"label {i}" for i in range(CLASSES)]},
            "corpus": {"path": run_dir},
            "teacher": {"model": "-"},
            "student": {"model": "-"},
            "selection": {"policy": "llkd", "weights": "product"},
        }
    )


def make_sidecars(config: RunConfig, sizes: Sequence[int]) -> None:
    """Write pseudo-labels, their statistics and the uncertainty of an epoch, in shards of `sizes`."""
    from llkd.cluster import shard_tasks
    from llkd.distill.pseudo_labels import STATISTICS

    work = functools.partial(_make_shard, config, tuple(sizes))
    total = shard_tasks.sum_over_shards(ClassStatistics, work, range(len(sizes)))
    Folder(RunLayout(config.run_dir).pseudo_labels).write_json(STATISTICS, total.to_json())


def _make_shard(config: RunConfig, sizes: Sequence[int], shard: int) -> ClassStatistics:
    random, rows, layout = np.random.default_rng(shard), sizes[shard], RunLayout(config.run_dir)
    row_n = np.arange(rows, dtype=np.int32)
    label_n = np.minimum(random.geometric(0.4, rows) - 1, CLASSES - 1).astype(np.int32)
    confidence_n = on_grid(1 - random.beta(1, 4, rows) * (1 - 1 / CLASSES))
    uncertainty_n = on_grid(random.beta(2, 3, rows))
    columns = {"row": row_n, "label": label_n, "confidence": confidence_n}
    labels = pa.table(columns, schema=PSEUDO_LABELS_SCHEMA)
    Folder(layout.pseudo_labels).write_shard(shard, labels)
    scored = pa.table({"row": row_n, "uncertainty": uncertainty_n}, schema=UNCERTAINTY_SCHEMA)
    Folder(layout.uncertainty(EPOCH)).write_shard(shard, scored)
    return class_statistics(label_n, confidence_n, None, CLASSES)


def select_once(selector: Any) -> tuple[float, int]:
    """(seconds, rows selected) of an epoch's selection, from the sidecars to the selected rows.

    In a run the sums of the uncertainty come from scoring; here they are read again, within the
    measured time.
    """
    from llkd.distill.pseudo_labels import teacher_statistics

    Folder(RunLayout(selector.config.run_dir).selection(EPOCH)).delete()
    started = time.perf_counter()
    sums_c = selector.uncertainty_sums(range(selector.shards), EPOCH)
    stats = selector.select(EPOCH, teacher_statistics(selector.config), sums_c, None)
    return time.perf_counter() - started, stats["selected"]


def _columns(run_dir: str) -> dict[str, np.ndarray]:
    layout = RunLayout(run_dir)
    labels = pq.read_table(
        sorted(Path(layout.pseudo_labels).glob("part-*.parquet")),
        columns=["row", "label", "confidence"],
    )
    scored = pq.read_table(
        sorted(Path(layout.uncertainty(EPOCH)).glob("part-*.parquet")), columns=["uncertainty"]
    )
    table = {name: labels[name].to_numpy() for name in labels.column_names}
    return {**table, "uncertainty": scored["uncertainty"].to_numpy()}


def select_with_numpy(run_dir: str) -> int:
    """Select all rows at once, in one process; returns the number selected."""
    from llkd.core.thresholds import TOLERANCE

    rows = _columns(run_dir)
    label_n = rows["label"]
    count_c = np.bincount(label_n, minlength=CLASSES)
    passes_n = np.ones(len(label_n), dtype=bool)
    for signal in ("confidence", "uncertainty"):
        mean_c = np.bincount(label_n, weights=rows[signal], minlength=CLASSES) / count_c
        passes_n &= rows[signal] >= mean_c[label_n] - TOLERANCE
    weight_n = (rows["confidence"] * rows["uncertainty"])[passes_n]
    table = pa.table(
        {"row": rows["row"][passes_n], "label": label_n[passes_n], "weight": weight_n},
        schema=SELECTION_SCHEMA,
    )
    pq.write_table(table, Path(run_dir) / "numpy.parquet")
    return table.num_rows


def select_with_polars(run_dir: str) -> int:
    """The same as a polars expression; returns the number selected."""
    import polars as pl

    from llkd.core.thresholds import TOLERANCE

    layout = RunLayout(run_dir)
    rows = pl.concat(
        [
            pl.scan_parquet(f"{layout.pseudo_labels}/part-*.parquet"),
            pl.scan_parquet(f"{layout.uncertainty(EPOCH)}/part-*.parquet").select("uncertainty"),
        ],
        how="horizontal",
    )
    over = [
        pl.col(name) >= pl.col(name).cast(pl.Float64).mean().over("label") - TOLERANCE
        for name in ("confidence", "uncertainty")
    ]
    chosen = rows.filter(over[0] & over[1]).select(
        "row", "label", weight=pl.col("confidence") * pl.col("uncertainty")
    )
    found = chosen.collect()
    found.write_parquet(Path(run_dir) / "polars.parquet")
    return found.height


CONTESTANTS: dict[str, Callable[[str], int]] = {
    "numpy": select_with_numpy,
    "polars": select_with_polars,
}


def table(result: Mapping[str, Any]) -> str:
    """The figures as text, a line per size."""
    lines = [
        f"{'rows':>12}{'shards':>9}{'ours':>22}{'numpy':>9}{'polars':>9}{'worker':>12}{'driver':>12}"
    ]
    for size in result["sizes"]:
        ours = size["rows_per_second"]["ours"]
        cells = f"{_median(size, 'ours') / 1e6:.2f} ({min(ours) / 1e6:.2f}-{max(ours) / 1e6:.2f})"
        others = "".join(
            f"{_median(size, name) / 1e6:9.2f}" if name in size["rows_per_second"] else f"{'':9}"
            for name in ("numpy", "polars")
        )
        peak = size["peak_mib"]
        lines.append(
            f"{size['rows']:12,}{size['shards']:9,}{cells:>22}{others}"
            f"{peak['worker']:8.0f} MiB{peak['driver']:8.0f} MiB"
        )
    ratios = ", ".join(f"{name} {value:,.2f}" for name, value in result["ratios"].items())
    return "\n".join([*lines, f"million rows/s, median (range); {ratios}"])


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Speed and memory by size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [size["rows"] for size in result["sizes"]]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    left.plot(rows, [_median(size, "ours") / 1e6 for size in result["sizes"]], "o-")
    left.set(xscale="log", xlabel="rows", ylabel="million rows a second")
    left.set_ylim(0, 1.1 * left.get_ylim()[1])
    for name in ("worker", "driver"):
        peaks = [size["peak_mib"][name] for size in result["sizes"]]
        right.plot(rows, peaks, "o-" if name == "worker" else "s--", label=name)
    right.set(xscale="log", xlabel="rows", ylabel="peak memory, MiB")
    right.set_ylim(0, 1.1 * right.get_ylim()[1])
    right.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    begun = time.perf_counter()
    count = CONTESTANTS[sys.argv[1]](sys.argv[2])
    send([time.perf_counter() - begun, count])
