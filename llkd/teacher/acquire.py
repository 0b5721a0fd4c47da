"""Acquisition: choose the rows that the teacher labels in a round.

The first round's rows are drawn at random; a later round takes those of which the previous round's
student is most uncertain. Each shard's candidates, with their uncertainty and stratum, are written
to sidecars once. The priority that a row needs is then computed from histograms of all shards.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from llkd.cluster.shard_tasks import sum_over_shards
from llkd.cluster.stage import ShardedStage
from llkd.config.run import RunConfig
from llkd.core.acquisition import (
    RandomSlice,
    digit_counts,
    draw_limit,
    draws,
    find_thresholds,
    priorities,
    strata,
)
from llkd.core.statistics import on_grid
from llkd.core.tally import Tally
from llkd.core.uncertainty import MEASURES
from llkd.store.arrays import matrix
from llkd.store.folder import Folder
from llkd.store.manifest import (
    Manifest,
    check_begun,
    read_manifest,
    require_complete,
)
from llkd.store.schema import (
    CANDIDATES_SCHEMA,
    PROBS,
    ROW,
    STRATUM,
    TEXT,
    UNCERTAINTY,
    WANTED_SCHEMA,
    RunLayout,
    shard_starts,
)
from llkd.teacher.calibrate import RANDOM_SLICE
from llkd.teacher.simhash import text_cells

CELL_BITS = 8
"""Bits of a text's hash: 256 cells."""


@dataclass(frozen=True)
class Candidates:
    """The rows of a shard that no earlier round has chosen: N rows."""

    row_n: np.ndarray
    """Positions in the shard, shape (N,), int32."""
    stratum_n: np.ndarray
    """Strata, as in llkd/core/acquisition.py, shape (N,), integers."""
    uncertainty_n: np.ndarray
    """The student's uncertainty, shape (N,), in [0, 1]; zeros in the first round."""


def choose(config: RunConfig, number: int, rows: int, basis: Manifest) -> Manifest:
    """Write the missing shards of the rows that the teacher labels in a round.

    Args:
        config: the run.
        number: of the round, from 0.
        rows: how many to choose.
        basis: the manifest that the choice depends on: the corpus's in the first round, later that
            of the predictions of the previous round's student.

    Returns:
        The manifest. Its results have `rows` by shard, and in the first round its RandomSlice.

    Raises:
        FingerprintError: the rows were chosen with other settings.
        IncompleteError: a shard is absent.
    """
    layout = RunLayout(config.run_dir).round(number)
    candidates = Folder(layout.candidates)
    stage = ShardedStage(Folder(layout.wanted), manifest_of(config, number, basis))
    if not stage.complete:
        ingested = require_complete(Folder(layout.rows("corpus")), "ingest")
        chooser = Chooser(config, number, shard_starts(ingested.results["rows"]))
        if number:
            candidate_stage = ShardedStage(candidates, stage.manifest)
            candidate_stage.run(chooser.write_candidates, len(chooser.starts))
        chooser.write(stage, chooser.thresholds(rows))
    candidates.delete()
    return stage.manifest


def manifest_of(config: RunConfig, number: int, basis: Manifest) -> Manifest:
    """The manifest of a round's rows: the settings that determine them."""
    settings = {**config.label.settings, "label.round": number, "seed": config.seed}
    return Manifest("choose", settings, basis.fingerprint)


def is_chosen(config: RunConfig, number: int, basis: Manifest) -> bool:
    """Whether all rows of a round are chosen. Takes the arguments of `choose`.

    Raises:
        FingerprintError: the rows were chosen with other settings.
    """
    folder = Folder(RunLayout(config.run_dir).round(number).wanted)
    check_begun(folder, manifest_of(config, number, basis))
    found = read_manifest(folder)
    return found is not None and found.complete


@dataclass(frozen=True)
class Chooser:
    """Chooses the rows of one round."""

    config: RunConfig
    number: int
    """Of the round, from 0."""
    starts: tuple[int, ...]
    """Position of each shard's first row in the corpus."""

    @property
    def cells(self) -> int:
        """The number of cells of similar texts."""
        return 2**CELL_BITS if self.number and self.config.label.diversity else 1

    def _layout(self, number: int) -> RunLayout:
        return RunLayout(self.config.run_dir).round(number)

    @property
    def _own(self) -> RunLayout:
        return self._layout(self.number)

    def write_candidates(self, shard: int) -> dict[str, Any]:
        """Write the candidates of a shard; returns its counts."""
        predicted = Folder(self._layout(self.number - 1).predictions("corpus"))
        probs_nc = matrix(predicted.read_shard(shard, [PROBS])[PROBS])
        asked_n = np.zeros(len(probs_nc), dtype=bool)
        for earlier in range(self.number):
            asked = Folder(self._layout(earlier).wanted).read_shard(shard, [ROW])
            asked_n[asked[ROW].to_numpy()] = True
        stratum_n = self._strata(shard, asked_n)
        uncertainty_n = on_grid(MEASURES[self.config.selection.uncertainty](probs_nc))
        row_n = np.flatnonzero(~asked_n)
        columns = {
            ROW: row_n.astype(np.int32),
            STRATUM: stratum_n[row_n].astype(np.int32),
            UNCERTAINTY: uncertainty_n[row_n],
        }
        table = pa.table(columns, schema=CANDIDATES_SCHEMA)
        return {"rows": len(table), "crc": Folder(self._own.candidates).write_shard(shard, table)}

    def _strata(self, shard: int, asked_n: np.ndarray) -> np.ndarray:
        """The stratum of each row of a shard, shape (N,)."""
        texts = Folder(self._own.rows("corpus")).read_shard(shard, [TEXT])[TEXT]
        text_n = texts.combine_chunks().dictionary_encode().indices.to_numpy()
        if self.cells == 1:
            cell_n = np.zeros(len(texts), dtype=np.int64)
        else:
            cell_n = text_cells(texts, CELL_BITS)
        return strata(cell_n, text_n, asked_n, self.cells)

    def candidates(self, shard: int) -> Candidates:
        """The candidates of a shard: in the first round all of its rows."""
        if self.number == 0:
            rows = Folder(self._own.rows("corpus")).read_shard(shard, [ROW])
            zero_n = np.zeros(len(rows), dtype=np.int64)
            return Candidates(rows[ROW].to_numpy(), zero_n, zero_n)
        table = Folder(self._own.candidates).read_shard(shard)
        columns = (table[name].to_numpy() for name in (ROW, STRATUM, UNCERTAINTY))
        return Candidates(*columns)

    def priorities(self, shard: int, found: Candidates) -> np.ndarray:
        """The priority of each candidate of a shard: uint64, shape (N,)."""
        position_n = self.starts[shard] + found.row_n.astype(np.int64)
        return priorities(found.uncertainty_n, draws(position_n, self.config.seed))

    def thresholds(self, rows: int) -> np.ndarray:
        """The priority in each stratum that exactly `rows` rows reach: uint64, shape (S,)."""

        def count(threshold_s: np.ndarray, digit: int) -> np.ndarray:
            work = partial(_count_shard, self, threshold_s, digit)
            total: Tally = sum_over_shards(Tally, work, range(len(self.starts)))
            return total["rows_sv"]

        return find_thresholds(count, rows, self.cells)

    def write(self, stage: ShardedStage, threshold_s: np.ndarray) -> None:
        """Write the rows of each shard that reach their stratum's threshold; close the stage."""
        folder = stage.folder

        def write(shard: int) -> dict[str, Any]:
            found = self.candidates(shard)
            taken_n = self.priorities(shard, found) >= threshold_s[found.stratum_n]
            table = pa.table({ROW: found.row_n[taken_n]}, schema=WANTED_SCHEMA)
            return {"rows": len(table), "crc": folder.write_shard(shard, table)}

        stage.run(write, len(self.starts))
        results: dict[str, Any] = {"rows": [shard.rows for shard in stage.counts()]}
        if self.number == 0:
            results[RANDOM_SLICE] = vars(RandomSlice(self.config.seed, draw_limit(threshold_s[0])))
        stage.close(results)


def _count_shard(chooser: Chooser, threshold_s: np.ndarray, digit: int, shard: int) -> Tally:
    found = chooser.candidates(shard)
    priority_n = chooser.priorities(shard, found)
    return Tally({"rows_sv": digit_counts(found.stratum_n, priority_n, threshold_s, digit)})
