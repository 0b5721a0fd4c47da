"""Acquisition on a real local Ray: the chosen rows do not depend on the shards."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llkd.config.run import RunConfig
from llkd.core.acquisition import quotas
from llkd.core.uncertainty import entropy
from llkd.errors import FingerprintError
from llkd.ingest.stage import ingest
from llkd.store.arrays import fixed_lists, named
from llkd.store.folder import Folder
from llkd.store.manifest import MANIFEST, Manifest
from llkd.store.schema import RunLayout, predictions_schema, shard_name
from llkd.teacher.acquire import CELL_BITS, choose, is_chosen
from llkd.teacher.simhash import text_cells
from tests.conftest import MakeConfig, SilentTracker

pytestmark = pytest.mark.usefixtures("local_ray")

BASIS = Manifest("test", {}, "")


def probabilities(rows: int) -> np.ndarray:
    """Made-up distributions over three labels, many of them the same."""
    raw = np.random.default_rng(5).integers(0, 4, (rows, 3)) + 0.5
    return np.asarray(raw / raw.sum(axis=1, keepdims=True), dtype=np.float32)


def write_predictions(config: RunConfig, rows: int, rows_per_shard: int) -> None:
    probs_nc = probabilities(rows)
    folder = Folder(RunLayout(config.run_dir).round(0).predictions("corpus"))
    for shard, start in enumerate(range(0, rows, rows_per_shard)):
        part = probs_nc[start : start + rows_per_shard]
        columns = {
            "row": np.arange(len(part), dtype=np.int32),
            "label": named(part.argmax(axis=1), config.task.label_names),
            "confidence": part.max(axis=1),
            "probs": fixed_lists(part),
        }
        folder.write_shard(shard, pa.table(columns, schema=predictions_schema(False, 3)))


def positions(config: RunConfig, number: int, rows_per_shard: int) -> list[int]:
    folder = Folder(RunLayout(config.run_dir).round(number).wanted)
    parts = [(s, folder.read_shard(s)["row"].to_pylist()) for s in sorted(folder.shards())]
    return [rows_per_shard * shard + row for shard, part in parts for row in part]


def chosen(config: RunConfig, rows: int = 420) -> list[list[int]]:
    """The positions of the rows of two rounds, 50 and 90."""
    rows_per_shard = config.corpus.rows_per_shard
    ingest(config, "corpus", SilentTracker())
    choose(config, 0, 50, BASIS)
    write_predictions(config, rows, rows_per_shard)
    choose(config, 1, 90, BASIS)
    return [positions(config, number, rows_per_shard) for number in (0, 1)]


@pytest.mark.parametrize("diversity", [True, False])
def test_the_rows_do_not_depend_on_the_shards(
    tmp_path: Path, make_config: MakeConfig, diversity: bool
) -> None:
    found: list[Any] = []
    for rows_per_shard in (420, 60, 23):
        config = make_config(
            run_dir=str(tmp_path / f"run{rows_per_shard}"), test=None,
            corpus={"rows_per_shard": rows_per_shard},
            label={"budget": 0.5, "diversity": diversity},
        )  # fmt: skip
        found.append(chosen(config))
        assert [len(part) for part in found[-1]] == [50, 90]
        assert not set(found[-1][0]) & set(found[-1][1])
    assert found[0] == found[1] == found[2]


@pytest.mark.usefixtures("in_process")
def test_the_most_uncertain_rows_of_each_cell_are_chosen(
    make_config: MakeConfig, corpus_files: tuple[str, str]
) -> None:
    config = make_config(test=None, label={"budget": 0.5})
    first, second = chosen(config)
    texts = pq.read_table(corpus_files[0], columns=["text"])["text"]
    cell_n, uncertainty_n = text_cells(texts, CELL_BITS), entropy(probabilities(420))
    left = np.setdiff1d(np.arange(420), first)
    rows_c = np.bincount(cell_n[left], minlength=256)
    quota_c = quotas(np.concatenate([rows_c, np.zeros_like(rows_c)]), 90)[:256]
    taken_c = np.bincount(cell_n[second], minlength=256)
    assert taken_c.tolist() == quota_c.tolist()
    for cell in np.flatnonzero(quota_c):
        here = left[cell_n[left] == cell]
        taken = np.intersect1d(here, second)
        rest = np.setdiff1d(here, second)
        if len(rest):
            assert uncertainty_n[taken].min() >= uncertainty_n[rest].max() - 1e-4


@pytest.mark.usefixtures("in_process")
def test_repeated_texts_are_chosen_last(tmp_path: Path, make_config: MakeConfig) -> None:
    texts = [f"a phone n{i}" for i in range(40)] + ["the same text"] * 60
    pq.write_table(pa.table({"text": texts}), tmp_path / "texts.parquet")
    corpus = {"path": str(tmp_path / "texts.parquet"), "rows_per_shard": 100}
    config = make_config(test=None, corpus=corpus, label={"budget": 0.5})
    ingest(config, "corpus", SilentTracker())
    choose(config, 0, 5, BASIS)
    write_predictions(config, 100, 100)
    choose(config, 1, 30, BASIS)
    first, second = (positions(config, number, 100) for number in (0, 1))
    assert max(first) >= 40  # the first round is random: its text is known
    assert len(second) == 30
    assert all(position < 40 for position in second)


@pytest.mark.usefixtures("in_process")
def test_finished_shards_are_kept(make_config: MakeConfig) -> None:
    config = make_config(test=None, label={"budget": 0.5})
    before = chosen(config)
    layout = RunLayout(config.run_dir).round(1)
    wanted = Folder(layout.wanted)
    assert is_chosen(config, 1, BASIS)
    assert not Folder(layout.candidates).names()
    wanted.delete_file(shard_name(3))
    wanted.write_json(MANIFEST, {**wanted.read_json(MANIFEST), "complete": False})
    stamp = Path(wanted.uri, shard_name(2)).stat().st_mtime_ns
    assert not is_chosen(config, 1, BASIS)
    choose(config, 1, 90, BASIS)
    assert positions(config, 1, 60) == before[1]
    assert Path(wanted.uri, shard_name(2)).stat().st_mtime_ns == stamp
    other = make_config(test=None, label={"budget": 0.5, "diversity": False})
    with pytest.raises(FingerprintError, match="label.diversity: was true, now false"):
        is_chosen(other, 1, BASIS)
