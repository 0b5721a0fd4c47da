"""The corpus with the teacher's labels, as one file per shard that `datasets` loads."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llkd.cluster import shard_tasks
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.tally import Tally
from llkd.results.cards import LabelledFacts
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


@dataclass(frozen=True)
class _Shards:
    """Writes the file of each shard."""

    config: RunConfig
    calibration: Calibration
    schema: pa.Schema
    shards: int
    target: Folder
    existing: frozenset[str]
    """Files of an earlier command."""

    def make(self, shard: int) -> Tally:
        """Write a shard's file unless it exists; returns its counts."""
        name = file_name(shard, self.shards)
        if name in self.existing:
            table = pq.read_table(pa.BufferReader(self.target.read_bytes(name)))
        else:
            table = self._table(shard)
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink, compression="zstd")
            self.target.write_bytes(name, sink.getvalue())
        label_n, confidence_n = table[LABEL].to_numpy(), table[CONFIDENCE].to_numpy()
        by_label = tally_by_label(label_n, confidence_n, len(self.config.task.labels))
        return Tally({**by_label, "arrow_bytes": np.array([table.nbytes])})

    def _table(self, shard: int) -> pa.Table:
        layout = RunLayout(self.config.run_dir)
        labels = Folder(layout.labels("corpus")).read_shard(shard, [ROW, LOGPROBS])
        wanted = [name for name in (TEXT, ID, GOLD) if name in self.schema.names]
        rows = Folder(layout.rows("corpus")).read_shard(shard, wanted).take(labels[ROW])
        probs_nc = self.calibration.apply(matrix(labels[LOGPROBS]))
        columns: dict[str, Any] = {
            **{name: rows[name] for name in wanted},
            LABEL: probs_nc.argmax(axis=1),
            CONFIDENCE: probs_nc.max(axis=1).astype(np.float32),
            PROBS: fixed_lists(probs_nc),
        }
        return pa.table({name: columns[name] for name in self.schema.names}).cast(self.schema)


def write_labelled_rows(
    config: RunConfig, calibration: Calibration, shards: int, target: Folder
) -> LabelledFacts:
    """Write a file for each shard of the corpus; existing ones are kept.

    Args:
        config: the run.
        calibration: of the corpus's labels.
        shards: their number.
        target: the folder of the files.

    Returns:
        The counts of their rows.
    """
    schema, existing = labelled_features(config).arrow_schema, frozenset(target.names())
    work = _Shards(config, calibration, schema, shards, target, existing).make
    tally: Tally = shard_tasks.sum_over_shards(Tally, work, range(shards))
    return LabelledFacts(
        tuple(map(int, tally["rows_c"])),
        tuple(map(float, tally["confidence_c"])),
        int(tally["arrow_bytes"][0]),
        sum(state.size for state in target.files().values()),
    )
