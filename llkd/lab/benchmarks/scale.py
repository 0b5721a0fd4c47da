"""What runs of several sizes would take, by llkd/lab/cost_model.py: no measurement, a calculation. And
what a plan foretold, beside what the run took.

The rates are assumed and told with the table; shards have the size that is recommended. Policy
`llkd`, four epochs, ten labels, texts of 500 bytes as they are stored; for every two million rows a
replica of the teacher, for eight of these a worker of the student.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from llkd.distill.epoch_stats import STATS
from llkd.lab.cost_model import (
    Estimate,
    Setup,
    Stage,
    estimate,
    recommended_rows_per_shard,
    selected_shares,
)
from llkd.store.folder import Folder
from llkd.store.manifest import MANIFEST, read_manifest, require_complete
from llkd.store.schema import RunLayout, shard_number

ROWS_A_REPLICA, MOST_REPLICAS = 2_000_000, 1024
REPLICAS_A_WORKER = 8
CPUS_A_REPLICA = 2
"""For ingest and selection."""
EPOCHS = 4
FORETOLD = ("seconds", "files", "bytes")
"""Figures of a stage that a finished run tells too."""


def scale(
    sizes: Sequence[int], *, teacher: float, score: float, train: float, tokens: float
) -> list[Estimate]:
    """A run of each size.

    Args:
        sizes: rows.
        teacher: rows a second of a replica.
        score: rows a second of a worker that scores.
        train: rows a second of one that trains.
        tokens: of a prompt.
    """
    found = []
    for rows in sizes:
        replicas = min(max(rows // ROWS_A_REPLICA, 1), MOST_REPLICAS)
        workers = max(replicas // REPLICAS_A_WORKER, 1)
        setup = Setup(
            rows=rows, rows_per_shard=1, classes=10, teacher_rate=teacher,
            teacher_replicas=replicas, prompt_tokens=tokens, epochs=EPOCHS, score_rate=score,
            train_rate=train, workers=workers, predict_replicas=workers,
            student_tokens=128, selected=selected_shares("llkd", EPOCHS), cpus=CPUS_A_REPLICA * replicas,
        )  # fmt: skip
        better = recommended_rows_per_shard(setup)
        found.append(estimate(replace(setup, rows_per_shard=better)))
    return found


def table(found: Sequence[Estimate]) -> str:
    """The figures, for people: a column a size."""
    rows: dict[str, list[str]] = {"rows": [f"{each.setup.rows:,}" for each in found]}
    rows["rows_per_shard"] = [f"{each.setup.rows_per_shard:,}" for each in found]
    rows["shards"] = [f"{each.setup.shards:,}" for each in found]
    rows["files"] = [f"{each.total('files'):,.0f}" for each in found]
    rows["stored, GB"] = [f"{each.total('bytes') / 1e9:,.1f}" for each in found]
    rows["tokens, teacher"] = [f"{_of(each, 'label').tokens:.1e}" for each in found]
    rows["GPU hours, teacher"] = [f"{_hours(each, 'label'):,.1f}" for each in found]
    rows["GPU hours, student"] = [
        f"{each.worker_hours - _hours(each, 'label'):,.1f}" for each in found
    ]
    rows["GPUs that label"] = [f"{each.setup.teacher_replicas:,}" for each in found]
    rows["GPUs of the student"] = [f"{each.setup.workers:,}" for each in found]
    rows["hours in all"] = [f"{each.total('seconds') / 3600:,.1f}" for each in found]
    rows["CPU hours"] = [f"{_cpu_hours(each):,.1f}" for each in found]
    rows["requests, reads"] = [f"{each.total('reads'):,.0f}" for each in found]
    rows["requests, writes"] = [f"{each.total('writes'):,.0f}" for each in found]
    rows["driver, CPU seconds"] = [f"{each.driver_seconds:,.0f}" for each in found]
    rows["driver, MiB"] = [f"{each.driver_mib:,.0f}" for each in found]
    lines = [
        f"{name:22}" + "".join(f"{cell:>18}" for cell in cells) for name, cells in rows.items()
    ]
    setup = found[0].setup
    return "\n".join(
        [
            *lines,
            f"assumed: teacher {setup.teacher_rate:,.0f} rows/s a GPU, student "
            f"{setup.score_rate:,.0f} scored and {setup.train_rate:,.0f} trained on",
        ]
    )


def actual(run_dir: str) -> dict[str, dict[str, float]]:
    """What the stages of a finished run took: by the model's names `seconds`, and of those that
    leave shards `files` and `bytes`.

    Raises:
        IncompleteError: it is not finished.
    """
    layout = RunLayout(run_dir)
    ingested = require_complete(Folder(layout.rows("corpus")), "ingest").results
    labelled = require_complete(Folder(layout.labels("corpus")), "label").results
    epochs = require_complete(Folder(layout.epochs), "distill").results["epochs"]
    found: dict[str, dict[str, float]] = {
        "ingest": {"seconds": ingested["seconds"], **_stored(layout.rows("corpus"))},
        "label": _stored(layout.labels("corpus")),
        "prepare": _stored(layout.pseudo_labels),
    }
    if labelled["rows_per_second"]:
        tested = read_manifest(Folder(layout.labels("test")))
        rows = [*labelled["rows"], *(tested.results["rows"] if tested else ())]
        found["label"]["seconds"] = sum(rows) / labelled["rows_per_second"]
    for epoch in range(epochs):
        seconds = Folder(layout.epoch(epoch)).read_json(STATS)["seconds"]
        folders = {"score": layout.uncertainty(epoch), "select": layout.selection(epoch)}
        for name, value in seconds.items():
            stored = _stored(folders[name]) if name in folders else {}
            found[f"epoch {epoch + 1} {name}"] = {"seconds": value, **stored}
    return found


def _stored(uri: str) -> dict[str, float]:
    files = {name: state for name, state in Folder(uri).files().items() if name != MANIFEST}
    shards = [name for name in files if shard_number(name) is not None]
    return {"files": len(shards), "bytes": sum(state.size for state in files.values())}


def comparison(plan: Mapping[str, Any], taken: Mapping[str, Mapping[str, float]]) -> str:
    """What a plan foretold and what a run took, for people: a line a stage.

    Args:
        plan: what Estimate.to_json gave.
        taken: what `actual` gave.
    """
    lines = [f"{'foretold, taken':16}" + "".join(f"{name:>30}" for name in FORETOLD)]
    for stage in plan["stages"]:
        found = taken.get(stage["name"], {})
        cells = [
            f"{stage[name]:15,.1f}{found[name]:15,.1f}" if name in found else ""
            for name in FORETOLD
        ]
        if found:
            lines.append(f"{stage['name']:16}" + "".join(f"{cell:>30}" for cell in cells))
    return "\n".join(lines)


def _of(found: Estimate, name: str) -> Stage:
    return next(stage for stage in found.stages if stage.name == name)


def _hours(found: Estimate, name: str) -> float:
    stage = _of(found, name)
    return stage.seconds * stage.workers / 3600


def _cpu_hours(found: Estimate) -> float:
    tasks = [stage for stage in found.stages if stage.on == "CPU"]
    return sum(stage.seconds * stage.workers for stage in tasks) / 3600
