"""The corpus with the teacher's labels, as one file per shard that `datasets` loads."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llkd.cluster import shard_tasks
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.tally import Tally
from llkd.results.predict import tally_by_label
from llkd.store.arrays import fixed_lists, matrix
from llkd.store.folder import Folder
from llkd.store.schema import CONFIDENCE, GOLD, ID, LABEL, LOGPROBS, PROBS, ROW, TEXT, RunLayout


def labelled_features(config: RunConfig) -> Any:
    """`datasets.Features` of the files."""
    from datasets import ClassLabel, Features, Value
    from datasets import List as Listed

    export, label = config.export, ClassLabel(names=config.task.label_names)
    features: dict[str, Any] = {TEXT: Value("large_string")}
    if config.corpus.id_column is not None:
        features[ID] = Value("string")
    features |= {LABEL: label, CONFIDENCE: Value("float32")}
    if export.distribution:
        features[PROBS] = Listed(Value("float32"), length=len(config.task.labels))
    if export.gold and config.corpus.label_column is not None:
        features[GOLD] = label
    return Features(features)


def file_name(shard: int, shards: int) -> str:
    """The name of a shard's file, in the hub's scheme for the files of a split."""
    return f"train-{shard:05d}-of-{shards:05d}.parquet"


def write_labelled_rows(
    config: RunConfig, calibration: Calibration, shards: int, target: Folder
) -> Tally:
    """Write a file for each shard of the corpus; existing ones are kept.

    Args:
        config: the run.
        calibration: of the corpus's labels.
        shards: their number.
        target: the folder of the files.

    Returns:
        `rows_c` and `confidence_c`, rows and summed confidence by label, shape (C,); `arrow_bytes`
        and `file_bytes`, the sizes of all rows in memory and on disk.
    """
    schema, existing = labelled_features(config).arrow_schema, frozenset(target.names())

    def write(shard: int) -> Tally:
        name = file_name(shard, shards)
        if name in existing:
            content = target.read_bytes(name)
            table = pq.read_table(pa.BufferReader(content))
        else:
            table, sink = _table(config, calibration, schema, shard), pa.BufferOutputStream()
            pq.write_table(table, sink, compression="zstd")
            content = sink.getvalue()
            target.write_bytes(name, content)
        label_n, confidence_n = table[LABEL].to_numpy(), table[CONFIDENCE].to_numpy()
        by_label = tally_by_label(label_n, confidence_n, len(config.task.labels))
        sizes = {"arrow_bytes": np.array(table.nbytes), "file_bytes": np.array(len(content))}
        return Tally({**by_label, **sizes})

    total: Tally = shard_tasks.sum_over_shards(Tally, write, range(shards))
    return total


def _table(config: RunConfig, calibration: Calibration, schema: pa.Schema, shard: int) -> pa.Table:
    layout = RunLayout(config.run_dir)
    labels = Folder(layout.labels("corpus")).read_shard(shard, [ROW, LOGPROBS])
    wanted = [name for name in (TEXT, ID, GOLD) if name in schema.names]
    rows = Folder(layout.rows("corpus")).read_shard(shard, wanted).take(labels[ROW])
    probs_nc = calibration.apply(matrix(labels[LOGPROBS]))
    columns: dict[str, Any] = {
        **{name: rows[name] for name in wanted},
        LABEL: probs_nc.argmax(axis=1),
        CONFIDENCE: probs_nc.max(axis=1).astype(np.float32),
        PROBS: fixed_lists(probs_nc),
    }
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)
