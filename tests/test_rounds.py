"""Labelling in rounds: the real stages on a real local Ray, a teacher of known answers."""

import io
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from llkd import rounds
from llkd.arrays import matrix
from llkd.calibrate import calibrate
from llkd.config import RunConfig
from llkd.core.calibration import fit_batch_bias, marginal
from llkd.errors import DataError, FingerprintError, StudentError
from llkd.manifest import MANIFEST, read_manifest
from llkd.pipeline import run_stage
from llkd.schema import RunLayout, shard_name
from llkd.stages.label import manifest_of
from llkd.storage import Folder
from tests.conftest import MakeConfig
from tests.fakes import text_key

pytestmark = pytest.mark.usefixtures("local_ray")

ROWS, SHARDS = 420, 7
BUDGET = {"budget": 0.4, "rounds": 3, "first": 0.5}


def run(stage: str, config: RunConfig) -> str:
    screen = io.StringIO()
    run_stage(stage, config, Console(file=screen, width=120))
    return screen.getvalue()


def in_rounds(make_config: MakeConfig, calls: Path, **sections: Any) -> RunConfig:
    """A run with a budget, whose teacher counts its texts."""
    label = {**BUDGET, **sections.pop("label", {})}
    teacher = {"engine_args": {"calls": str(calls)}, **sections.pop("teacher", {})}
    student = {"epochs": 1, **sections.pop("student", {})}
    return make_config(label=label, teacher=teacher, student=student, **sections)


def asked(calls: Path) -> Counter[str]:
    """How often the teacher was asked about each text."""
    return Counter(line.split()[0] for line in calls.read_text().splitlines())


def rows_in(uri: str) -> list[list[int]]:
    """The rows of each shard of a folder."""
    return [Folder(uri).read_shard(shard, ["row"])["row"].to_pylist() for shard in range(SHARDS)]


def keys_of(config: RunConfig, dataset: str, rows: list[list[int]]) -> Counter[str]:
    folder = Folder(RunLayout(config.run_dir).rows(dataset))
    texts = [folder.read_shard(shard)["text"].to_pylist() for shard in range(len(rows))]
    return Counter(text_key(texts[shard][row]) for shard, part in enumerate(rows) for row in part)


def test_a_part_of_the_corpus_is_labelled_and_learnt_from(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = in_rounds(make_config, tmp_path / "calls", corpus={"label_column": "label"})
    told = run("run", config)
    for line in ("round 1/3: 84", "round 2/3: 42", "round 3/3: 42 of 420 rows chosen"):
        assert line in told
    layout = RunLayout(config.run_dir)
    labelled = rows_in(layout.labels("corpus"))
    assert sum(map(len, labelled)) == 168  # 0.4 of 420
    assert all(part == sorted(set(part)) for part in labelled)
    wanted = [rows_in(RunLayout(layout.round(number)).wanted) for number in range(3)]
    assert [sum(map(len, parts)) for parts in wanted] == [84, 42, 42]
    for shard in range(SHARDS):
        assert sorted(sum((parts[shard] for parts in wanted), [])) == labelled[shard]
    found = asked(tmp_path / "calls")
    expected = keys_of(config, "corpus", labelled) + keys_of(config, "test", [list(range(120))])
    assert {key: found[key] for key in expected} == dict.fromkeys(expected, 1)
    assert len(found) == len(expected) + 3  # texts without content
    metrics = Folder(config.run_dir).read_json("metrics.json")
    assert (metrics["teacher"]["rows"], metrics["selection"]["rows"]) == (168, 168)
    assert metrics["teacher"]["labelled_fraction"] == pytest.approx(0.4)
    left = {name for number in range(3) for name in Folder(layout.round(number)).names()}
    assert left <= {"wanted", "answers", "labels", "epochs", "predictions"}
    assert "epochs" in left
