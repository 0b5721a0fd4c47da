"""The useful share of a whole run.

`jobs/run.py` runs as a user starts it, from nothing, and is timed from outside. Its time is broken down
by the records in its run directory:

    teacher   from the first engine's first row to the last engine's last
    student   scoring, training and validation, without the workers' idle time; the test set, from
              its first row to its last
    rows      ingest, and the workers' wait for rows to be read and tokenised
    rest      start of Python, Ray and the engines, loading of models, selection, checkpoints, export
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llkd.config.run import RunConfig
from llkd.distill.epoch_stats import read_stats
from llkd.errors import IncompleteError
from llkd.lab.benchmarks.arguments import add_config, config_of
from llkd.store.folder import Folder
from llkd.store.manifest import read_manifest, require_complete
from llkd.store.schema import RunLayout

JOB = Path(__file__).parents[3] / "jobs" / "run.py"
TEN_MINUTES = ("teacher.max_text_tokens=128", "student.max_length=128", "student.epochs=7")
"""With these the demo takes about ten minutes on two cores."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `run`."""
    add_config(parser, TEN_MINUTES)


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure as the command line says."""
    config = config_of(arguments)
    return benchmark_overhead(config, arguments.config, arguments.overrides, say)


def benchmark_overhead(
    config: RunConfig, path: str, overrides: Sequence[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """Run, and break down the time.

    Args:
        config: loaded from `path` with `overrides`.
        path: the config's file.
        overrides: settings that override the file's; `run_dir` is always a new directory.
        say: prints a line of progress.

    Returns:
        `seconds` by purpose, and `ratios` with `useful_share`: the share of teacher, student and
        rows.

    Raises:
        IncompleteError: the run failed.
    """
    with tempfile.TemporaryDirectory(prefix="llkd-benchmark-") as folder:
        run_dir = f"{folder}/run"
        command = [sys.executable, str(JOB), path, *overrides, f"run_dir={run_dir}"]
        started = time.perf_counter()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                say(line.rstrip())
        if process.returncode:
            raise IncompleteError(f"The run failed with status {process.returncode}, see above")
        total = time.perf_counter() - started
        return account(config.model_copy(update={"run_dir": run_dir}), total)


def account(config: RunConfig, total: float) -> dict[str, Any]:
    """Break down the `total` seconds of a finished run."""
    layout = RunLayout(config.run_dir)
    labelled = [
        require_complete(Folder(layout.labels(name)), "label").results for name in config.datasets
    ]
    ingested = [
        require_complete(Folder(layout.rows(name)), "ingest").results for name in config.datasets
    ]
    distilled = require_complete(Folder(layout.epochs), "distill").results
    stats = [read_stats(config, epoch) for epoch in range(distilled["epochs"])]
    waits = [entry["waiting"]["seconds"] for entry in stats]
    computing = sum(entry["seconds"]["score"] + entry["seconds"]["train"] for entry in stats)
    for_rows = sum(entry["batches"] for entry in waits)
    seconds = {
        "teacher": sum(sum(entry["rows"]) / entry["rows_per_second"] for entry in labelled),
        "student": computing - for_rows - sum(entry["others"] for entry in waits) + _tested(layout),
        "rows": for_rows + sum(entry["seconds"] for entry in ingested),
    }
    useful = sum(seconds.values())
    return {
        "seconds": {**seconds, "rest": total - useful, "total": total},
        "stages": {
            "ingest": sum(entry["seconds"] for entry in ingested),
            "label": max(entry["seconds"] for entry in labelled),
            "distill": distilled["seconds"],
            "select": sum(entry["seconds"]["select"] for entry in stats),
        },
        "waiting_share": [entry["waiting"]["share"] for entry in stats],
        "ratios": {"useful_share": useful / total},
    }


def _tested(layout: RunLayout) -> float:
    """Seconds of the student's pass over the test set."""
    folder = Folder(layout.test_predictions)
    if read_manifest(folder) is None:
        return 0.0
    predicted = require_complete(folder, "predict").results
    if predicted["rows_per_second"] is None:  # all shards existed when the pass began
        return 0.0
    return float(sum(predicted["rows"]) / predicted["rows_per_second"])


def table(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    total = result["seconds"]["total"]
    lines = [
        f"{name:10}{seconds:8.1f} s {seconds / total:7.1%}"
        for name, seconds in result["seconds"].items()
    ]
    waiting = ", ".join(f"{share:.1%}" for share in result["waiting_share"])
    share = result["ratios"]["useful_share"]
    return "\n".join(
        [*lines, f"idle time of the workers, by epoch: {waiting}; useful_share {share:.3f}"]
    )
