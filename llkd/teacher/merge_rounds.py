"""The labels of a corpus that was labelled in rounds, merged from the answers of each round.

A shard holds the rows of all rounds, in ascending order. No row is in two rounds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from llkd.cluster.stage import ShardedStage
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, require_complete
from llkd.store.schema import ROW, RunLayout


def merge(
    labels: Folder,
    rejects: Folder | None,
    rounds: Sequence[RunLayout],
    wanted: Manifest,
    results: dict[str, Any],
) -> Manifest:
    """Write the labels of a run, or of a round, from the answers of rounds.

    Args:
        labels: where they go.
        rejects: where the rows go that the teacher refused in any round; None to write none.
        rounds: the rounds to merge.
        wanted: what determines the labels.
        results: added to the label stage's results in the manifest.

    Raises:
        FingerprintError: the labels were made with other settings.
        IncompleteError: a round is not labelled, or a shard is absent.
    """
    stage = ShardedStage(labels, wanted, rejects)
    if stage.complete:
        return stage.manifest
    answers = [Folder(each.answers) for each in rounds]
    refused = [Folder(each.label_rejects("corpus")) for each in rounds]
    answered = [require_complete(each, "label") for each in answers]
    listed = [(each, each.shards()) for each in refused]

    def write(shard: int) -> dict[str, Any]:
        if rejects is not None:
            left_out = [each.read_shard(shard) for each, there in listed if shard in there]
            if left_out:
                rejects.write_shard(shard, _in_order(left_out))
        table = _in_order([each.read_shard(shard) for each in answers])
        return {"rows": len(table), "crc": labels.write_shard(shard, table)}

    stage.run(write, len(answered[0].results["rows"]))
    return stage.close({**_results(answered), **results})


def _in_order(tables: Sequence[pa.Table]) -> pa.Table:
    """All rows of the tables, by `row`."""
    table = pa.concat_tables(tables)
    return table.take(np.argsort(table[ROW].to_numpy(), kind="stable"))


def _results(answered: Sequence[Manifest]) -> dict[str, Any]:
    """The label stage's results, for all rounds together."""
    found = [each.results for each in answered]
    rows = np.sum([each["rows"] for each in found], axis=0).tolist()
    counts = [sum(each["rows"]) for each in found]
    mass = sum(n * each["label_mass"] for n, each in zip(counts, found, strict=True))
    # A round whose shards earlier commands labelled has no rate.
    timed = [
        (n, each["rows_per_second"])
        for n, each in zip(counts, found, strict=True)
        if each["rows_per_second"]
    ]
    seconds = sum(n / rate for n, rate in timed)
    return {
        "rows": rows,
        "rejected": sum(each["rejected"] for each in found),
        "label_mass": mass / max(sum(rows), 1),
        "rows_per_second": sum(n for n, _ in timed) / seconds if seconds else None,
    }
