"""The labels of an ensemble: one table from those of several teachers.

The distributions of each teacher pass through its own calibration before they are combined. A row
that any teacher refused is left out.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa

from llkd.cluster.stage import ShardedStage, column_sums
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.ensemble import combine_distributions
from llkd.store.arrays import fixed_lists, matrix
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, require_complete
from llkd.store.schema import (
    DISAGREEMENT,
    LABEL_MASS,
    LOGPROBS,
    ROW,
    RunLayout,
    labels_schema,
)
from llkd.teacher.calibrate import calibration_settings

Teachers = Sequence[tuple[RunConfig, Calibration]]


def combine(config: RunConfig, teachers: Teachers, datasets: Sequence[str]) -> None:
    """Write the missing shards of `labels/` of each data set from `teachers/NN/labels/`.

    Args:
        config: the run.
        teachers: each teacher's own config, and its calibration.
        datasets: the data sets whose labels to combine.

    Raises:
        FingerprintError: the labels were made with other settings.
        IncompleteError: a teacher has not labelled all shards, or a shard is absent.
    """
    for dataset in datasets:
        _combine(config, teachers, dataset)


def manifest_of(teachers: Sequence[tuple[RunConfig, Manifest]]) -> Manifest:
    """The manifest of the combined labels: the settings that determine them."""
    settings: dict[str, Any] = {}
    for alone, labelled in teachers:
        name = f"teachers.{alone.teacher_number}"
        settings[f"{name}.labels"] = labelled.fingerprint
        settings[f"{name}.weight"] = alone.teacher.weight
        for key, value in calibration_settings(alone).items():
            settings[f"{name}.{key.removeprefix('teacher.')}"] = value
    return Manifest("label", settings, "")


def _combine(config: RunConfig, teachers: Teachers, dataset: str) -> None:
    sources = [
        Folder(RunLayout(config.run_dir, alone.teacher_number).labels(dataset))
        for alone, _ in teachers
    ]
    labelled = [require_complete(source, "label") for source in sources]
    apart = [(alone, each) for (alone, _), each in zip(teachers, labelled, strict=True)]
    summed = (LABEL_MASS, DISAGREEMENT)
    folder = Folder(RunLayout(config.run_dir).labels(dataset))
    stage = ShardedStage(folder, manifest_of(apart), summed=summed)
    if stage.complete:
        return

    def write(shard: int) -> dict[str, Any]:
        tables = [source.read_shard(shard, [ROW, LOGPROBS, LABEL_MASS]) for source in sources]
        table = _combined(teachers, tables)
        crc = folder.write_shard(shard, table)
        return {"rows": len(table), "crc": crc, **column_sums(table, summed)}

    stage.run(write, len(labelled[0].results["rows"]))
    counts = stage.counts()
    rows = [shard.rows for shard in counts]
    total = max(sum(rows), 1)
    rates = [each.results["rows_per_second"] for each in labelled]
    stage.close(
        {
            "rows": rows,
            "rejected": max(each.results["rejected"] for each in labelled),
            "label_mass": sum(shard.sums[0] for shard in counts) / total,
            "disagreement": sum(shard.sums[1] for shard in counts) / total,
            "seconds": sum(each.results["seconds"] for each in labelled),
            # Every teacher labels each row.
            "rows_per_second": 1 / sum(1 / rate for rate in rates) if all(rates) else None,
        }
    )


def _combined(teachers: Teachers, tables: Sequence[pa.Table]) -> pa.Table:
    """One table of labels from each teacher's table of the same shard."""
    weights = [alone.teacher.weight for alone, _ in teachers]
    rows = [table[ROW].to_numpy() for table in tables]
    kept_n = reduce(np.intersect1d, rows)
    places = [np.searchsorted(row_n, kept_n) for row_n in rows]
    probs = [
        calibration.apply(matrix(table[LOGPROBS])[place_n])
        for (_, calibration), table, place_n in zip(teachers, tables, places, strict=True)
    ]
    logprobs_nc, disagreement_n = combine_distributions(probs, weights)
    masses = [
        table[LABEL_MASS].to_numpy()[place_n] for table, place_n in zip(tables, places, strict=True)
    ]
    columns = {
        ROW: kept_n.astype(np.int32),
        LOGPROBS: fixed_lists(logprobs_nc),
        LABEL_MASS: np.average(masses, axis=0, weights=weights).astype(np.float32),
        DISAGREEMENT: disagreement_n,
    }
    return pa.table(columns, schema=labels_schema(logprobs_nc.shape[1], several=True))
