"""Faults injected into a run on a Ray of four nodes; and that the checks find each damage."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from llkd.config.run import RunConfig
from llkd.lab.chaos.harness import FaultPlan
from llkd.lab.chaos.verify import problems
from llkd.store.folder import Folder
from tests.conftest import ROOT, config_maker
from tests.heads import reaped

pytestmark = pytest.mark.slow

KINDS = ["actor", "trainer", "task", "node", "driver", "store"]


@dataclass
class Disturbed:
    """A run with a fault of every kind, and one without."""

    config: RunConfig
    undisturbed: RunConfig
    output: str
    runs: list[dict[str, Any]]


@pytest.fixture(scope="module")
def disturbed(
    tmp_path_factory: pytest.TempPathFactory, tiny_student: str, corpus_files: tuple[str, str]
) -> Disturbed:
    folder = tmp_path_factory.mktemp("chaos")
    config = config_maker(folder, tiny_student, corpus_files)(
        corpus={"rows_per_shard": 20},
        teacher={"replicas": [1, 3], "engine_args": {"delay": 0.02, "refuse": "n77"}},
        student={"workers": 2, "batch_size": 4},
        selection={"class_floor": 1.0},  # all rows: training lasts long enough to be killed in
        max_reject_fraction=0.1,
    )
    path, figures = folder / "config.yaml", folder / "figures.json"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with reaped() as env:
        env.pop("RAY_ADDRESS", None)
        done = subprocess.run(
            [sys.executable, "jobs/chaos.py", path, "--kills", "6", "--runs", "1", "--json", figures],
            cwd=ROOT, env={**env, "PYTHONPATH": str(ROOT)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout
    chaos = f"{config.run_dir}/chaos"
    both = [
        config.model_copy(update={"run_dir": f"{chaos}/{name}"}) for name in ("00", "undisturbed")
    ]
    return Disturbed(*both, done.stdout, json.loads(figures.read_text()))


def test_a_run_that_is_killed_in_every_way_loses_nothing(disturbed: Disturbed) -> None:
    (run,) = disturbed.runs
    hit = [fault["kind"] for fault in run["faults"]]
    assert sorted(hit + run["missed"]) == sorted(KINDS)
    assert set(hit) >= {"actor", "node", "driver", "store"}
    assert run["problems"] == []
    assert run["statuses"][-1] == 0
    assert run["statuses"].count(-9) == 1  # the driver's
    assert "Nothing lost" in disturbed.output
    assert problems(disturbed.config, disturbed.undisturbed) == []


def test_labels_are_given_to_rejected_rows_too(disturbed: Disturbed) -> None:
    rejects = Folder(f"{disturbed.config.run_dir}/rejects/label-corpus")
    assert sum(rejects.shard_rows(shard) for shard in rejects.shards()) == 1  # the text with n77


Damage = Callable[[Path], None]


def rewritten(folder: str, shard: int, change: Callable[[pa.Table], pa.Table]) -> Damage:
    def damage(run_dir: Path) -> None:
        at = Folder(str(run_dir / folder))
        at.write_shard(shard, change(at.read_shard(shard)))

    return damage


def shifted(table: pa.Table) -> pa.Table:
    logprobs = np.array(table["logprobs"].to_pylist(), dtype=np.float32) + np.float32(1e-3)
    column = pa.array(logprobs.tolist(), table.schema.field("logprobs").type)
    return table.set_column(1, table.schema.field("logprobs"), column)


def forgotten(run_dir: Path) -> None:
    (run_dir / "labels/.part-00003.parquet.0123.tmp").write_bytes(b"half")


DAMAGES: dict[str, tuple[Damage, str]] = {
    "a label lost": (rewritten("labels", 2, lambda t: t.slice(1)), "1 rows lost"),
    "a label twice": (
        rewritten("labels", 2, lambda t: pa.concat_tables([t.slice(0, 1), t])), "rows twice",
    ),
    "labels of another shard": (
        lambda run_dir: shutil.copy(
            run_dir / "labels/part-00001.parquet", run_dir / "labels/part-00002.parquet"
        ) and None,
        "not that of the undisturbed run",
    ),
    "labels that differ": (rewritten("labels", 0, shifted), "by 0.001"),
    "a row lost": (rewritten("corpus", 1, lambda t: t.slice(0, 19)), "shard 1"),
    "a score lost": (
        rewritten("epochs/01/uncertainty", 2, lambda t: t.slice(1)), "rows of its labels",
    ),
    "a row selected twice": (
        rewritten("epochs/00/selection", 0, lambda t: pa.concat_tables([t.slice(0, 1), t])),
        "rows twice",
    ),
    "a prediction lost": (
        rewritten("test_predictions", 0, lambda t: t.slice(1)), "rows of the test set",
    ),
    "no figures": (lambda run_dir: (run_dir / "metrics.json").unlink(), "metrics.json"),
    "half a file": (forgotten, "left behind"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_wrong_is_seen(
    disturbed: Disturbed, tmp_path: Path, damage: Damage, message: str
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(disturbed.config.run_dir, run_dir)
    damage(run_dir)
    config = disturbed.config.model_copy(update={"run_dir": str(run_dir)})
    found = problems(config, disturbed.undisturbed)
    assert found
    assert any(message in line for line in found), found


def test_kinds_are_dealt_evenly_over_runs() -> None:
    dealt = FaultPlan(kills=100, runs=20, kinds=KINDS, seed=3).of_each_run()
    assert [len(of_run) for of_run in dealt] == [5] * 20
    counts = [sum(of_run.count(kind) for of_run in dealt) for kind in KINDS]
    assert max(counts) - min(counts) == 1
    assert dealt == FaultPlan(100, 20, KINDS, 3).of_each_run()
    assert dealt != FaultPlan(100, 20, KINDS, 4).of_each_run()
