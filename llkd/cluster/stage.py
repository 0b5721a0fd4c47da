"""The life of a shard, from the first command to the closed stage: one skeleton for all stages.

A stage computes shard k of its folder from shard k of its inputs. Each shard passes through four
states:

1. **Missing.** Its file does not exist. `missing` lists these shards and deletes the rejects that
   an earlier attempt at them left behind.
2. **Written.** A worker writes the rows that it rejects to shard k of the rejects folder, then the
   shard itself, each in one step. So a shard never exists without its rejects, and a command that
   is killed loses only the shards in flight. The worker returns the shard's counts; `add` keeps
   them.
3. **Counted.** When no shard is absent, `counts` adds up what was written. Shards of earlier
   commands are counted from their files. Rows and rejects together must be all the rows that the
   shard was computed from; a shard whose rejects are lost is deleted, to be computed again.
4. **Closed.** `close` records the size and CRC-32 of every file, then writes the manifest with the
   results. The stage is complete: later commands leave it alone, until repair finds a damaged
   file and reopens it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from llkd.cluster.integrity import close_stage, shard_crcs
from llkd.cluster.shard_tasks import run_on_shards
from llkd.errors import IncompleteError
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, begun, open_stage
from llkd.store.schema import REASON, shard_name


class ShardCounts(NamedTuple):
    """The counts of one shard."""

    rows: int
    """Rows written."""
    rejects: Mapping[str, int]
    """Rows rejected, by reason."""
    sums: tuple[float, ...]
    """The sum of each of the stage's `summed` columns."""


class ShardedStage:
    """A stage that writes a folder of shards.

        stage = ShardedStage(folder, wanted)
        if not stage.complete:
            stage.run(write_shard, shards)  # only the missing ones
            stage.close(totals(stage.counts()))  # refuses if a shard is absent

    A stage with an actor pool calls `missing`, and `add` for each result, in place of `run`.
    """

    def __init__(
        self,
        folder: Folder,
        wanted: Manifest,
        rejects: Folder | None = None,
        summed: Sequence[str] = (),
    ) -> None:
        """Begin or resume the stage.

        Args:
            folder: the folder of the shards and the manifest.
            wanted: the manifest with the settings that determine the shards.
            rejects: the folder of rejected rows; None if the stage rejects none.
            summed: columns whose sums are among the counts.

        Raises:
            FingerprintError: the folder was made with other settings.
        """
        if rejects is not None and not begun(folder):
            rejects.delete()  # of shards that the user has deleted
        self.folder = folder
        self.manifest = open_stage(folder, wanted)
        self._rejects = rejects
        self._summed = tuple(summed)
        self._shards = 0
        self._counts: dict[int, ShardCounts] = {}
        self._crcs: dict[int, int] = {}
        self._all_there = False

    @property
    def complete(self) -> bool:
        """Whether an earlier command has closed the stage."""
        return self.manifest.complete

    def missing(self, shards: int) -> list[int]:
        """The shards that are still to be written, ascending.

        Args:
            shards: the number of shards of the stage.
        """
        self._shards = shards
        missing = self._absent()
        if self._rejects is not None:
            _delete_shards(self._rejects, self._rejects.shards().intersection(missing))
        return missing

    def run(self, write: Callable[[int], dict[str, Any]], shards: int) -> None:
        """Write the missing shards in Ray tasks.

        Args:
            write: writes a shard; returns what `add` takes.
            shards: the number of shards of the stage.
        """
        for shard, written in run_on_shards(write, self.missing(shards)):
            self.add(shard, written)

    def add(self, shard: int, written: Mapping[str, Any]) -> None:
        """Keep the counts of a shard that was just written.

        Args:
            shard: its number.
            written: its `rows`, its `crc`, the sum of each summed column by name, and its
                `rejects` by reason, if any.
        """
        self._keep(shard, written)
        self._crcs[shard] = written["crc"]

    def require_all(self) -> None:
        """Check that no shard is absent.

        Raises:
            IncompleteError: a shard is absent.
        """
        if self._all_there:  # listing a million shards is slow
            return
        if absent := self._absent():
            raise IncompleteError(
                f"{self.folder.uri} lacks {len(absent)} of {self._shards} shards, first "
                f"{absent[0]}.",
                "Run the same command again.",
            )
        self._all_there = True

    def counts(self, expected: Sequence[int] | None = None) -> list[ShardCounts]:
        """The counts of all shards, in their order.

        Args:
            expected: the number of rows that each shard was computed from; None if the stage
                chooses its rows.

        Raises:
            IncompleteError: a shard is absent, or rows of it are neither written nor rejected.
        """
        self.require_all()
        earlier = [shard for shard in range(self._shards) if shard not in self._counts]
        rejecting = self._rejects.shards() if self._rejects is not None and earlier else set()
        recount = partial(_recount, self.folder, self._rejects, rejecting, self._summed)
        for shard, found in run_on_shards(recount, earlier):
            self._keep(shard, found)
        if expected is not None:
            self._verify(expected)
        return [self._counts[shard] for shard in range(self._shards)]

    def crcs(self) -> dict[str, int]:
        """CRC-32 of each shard, by file name.

        Raises:
            StorageError: a shard is damaged.
        """
        return shard_crcs(self.folder, self._shards, self._crcs)

    def close(self, results: Mapping[str, Any], crcs: Mapping[str, int] | None = None) -> Manifest:
        """Record the files and write the finished manifest, which is returned.

        Args:
            results: counts and times, for the manifest.
            crcs: CRC-32 of all files to record, by name; None for the shards only.

        Raises:
            IncompleteError: a shard is absent.
        """
        self.require_all()
        finished = self.manifest.finished(results)
        self.manifest = close_stage(
            self.folder, finished, self.crcs() if crcs is None else crcs, self._rejects
        )
        return self.manifest

    def _absent(self) -> list[int]:
        return sorted(set(range(self._shards)) - self.folder.shards())

    def _keep(self, shard: int, found: Mapping[str, Any]) -> None:
        # One empty mapping for all: there may be a million shards.
        rejects = found.get("rejects") or _NO_REJECTS
        sums = tuple(found[column] for column in self._summed)
        self._counts[shard] = ShardCounts(found["rows"], rejects, sums)

    def _verify(self, expected: Sequence[int]) -> None:
        """Compare rows and rejects with the rows that each shard was computed from.

        Raises:
            IncompleteError: rows are lost; their shards are deleted.
        """
        lost = []
        for shard, (rows, rejects, sums) in self._counts.items():
            if rows == expected[shard]:  # a worker that died had rejected rows, its successor none
                self._counts[shard] = ShardCounts(rows, _NO_REJECTS, sums)
            elif rows + sum(rejects.values()) != expected[shard]:
                lost.append(shard)
        if lost:
            _delete_shards(self.folder, lost)
            rejects_uri = self._rejects.uri if self._rejects else "The rejects"
            raise IncompleteError(
                f"{rejects_uri} has lost rows that were left out of {len(lost)} shards of "
                f"{self.folder.uri}, first {min(lost)}.",
                "Run the same command again: it computes these shards again.",
            )
        if self._rejects is not None:
            there = self._rejects.shards()
            stale = [n for n, found in self._counts.items() if n in there and not found.rejects]
            _delete_shards(self._rejects, stale)


_NO_REJECTS: Mapping[str, int] = {}


def column_sums(table: pa.Table, columns: Sequence[str]) -> dict[str, float]:
    """The sum of each column, in float64."""
    return {name: float(table[name].to_numpy().sum(dtype=np.float64)) for name in columns}


def _recount(
    folder: Folder, rejects: Folder | None, rejecting: set[int], summed: Sequence[str], shard: int
) -> dict[str, Any]:
    """The counts of a shard, from its file and the file of its rejects."""
    reasons: dict[str, int] = {}
    if rejects is not None and shard in rejecting:
        reasons = Counter(rejects.read_shard(shard, [REASON])[REASON].to_pylist())
    if not summed:
        return {"rows": folder.shard_rows(shard), "rejects": reasons}
    table = folder.read_shard(shard, summed)
    return {"rows": len(table), "rejects": reasons, **column_sums(table, summed)}


def _delete_shards(folder: Folder, shards: Iterable[int]) -> None:
    for shard in shards:
        folder.delete_file(shard_name(shard))
