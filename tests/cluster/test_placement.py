"""Replicas that span nodes: their reservations, their placement, and their release."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from llkd.cluster.placement import bundles_of
from llkd.ingest.stage import ingest
from tests import spread
from tests.conftest import ROOT, SilentTracker, config_maker
from tests.heads import reaped

pytestmark = pytest.mark.slow


def test_a_bundle_for_each_gpu_with_its_share_of_the_node() -> None:
    each = {"GPU": 1.0, "CPU": 3.5, "gpu_worker": 0.5}
    assert bundles_of({"GPU": 2, "CPU": 7, "gpu_worker": 1}, 3) == [each] * 6
    assert bundles_of({"GPU": 3, "host": 1}, 1) == [{"GPU": 3, "host": 1}]
    # Thirds of ten thousand, and none too many: a node must hold all of its shares.
    assert bundles_of({"GPU": 3, "host": 1}, 2)[0]["host"] == 0.3333
    for gpus in range(1, 17):
        shares = [bundle["host"] for bundle in bundles_of({"GPU": gpus, "host": 1}, 2)[:gpus]]
        assert 1 - gpus * 1e-4 <= sum(shares) <= 1 + 1e-9


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_student: str,
    corpus_files: tuple[str, str],
    local_ray: None,
) -> Path:
    """The observations of tests/spread.py."""
    folder = tmp_path_factory.mktemp("spread")
    (folder / "told").mkdir()
    config = config_maker(folder, tiny_student, corpus_files)(
        test=None,
        teacher={
            "engine": "tests.spread:SpreadTeacher", "replicas": [2, 2], "nodes": 2,
            "resources": spread.ON_EACH,
            "engine_args": {
                "told": str(folder / "told"), "tensor_parallel_size": 2, "pipeline_parallel_size": 2,
            },
        },
    )  # fmt: skip
    ingest(config, "corpus", SilentTracker())
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with reaped() as env:
        env.pop("RAY_ADDRESS", None)
        done = subprocess.run(
            [sys.executable, "-m", "tests.spread", path, folder], cwd=ROOT, text=True,
            env={**env, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "seen.json").read_text()))


@pytest.fixture(scope="module")
def told(folder: Path) -> list[dict[str, Any]]:
    """The observations of each replica."""
    return [json.loads(file.read_text()) for file in (folder / "told").iterdir()]


def test_two_replicas_have_two_groups_over_two_nodes_each(told: list[dict[str, Any]]) -> None:
    assert len(told) == len({each["group"] for each in told}) == 2
    for each in told:
        assert each["strategy"] == "PACK"
        assert each["bundles"] == [{"GPU": 1.0, "CPU": 0.5, "gpu_worker": 0.5}] * 4
        assert sorted(Counter(each["nodes"]).values()) == [2, 2]
    assert len({node for each in told for node in each["nodes"]}) == 4


def test_the_workers_of_a_replica_have_the_gpus_of_its_nodes(told: list[dict[str, Any]]) -> None:
    for each in told:
        assert each["node"] in each["nodes"]
        assert each["held"].get("GPU", 0) == 0
        workers = sorted(map(tuple, each["workers"]))
        assert workers == sorted((node, gpu) for node in set(each["nodes"]) for gpu in "01")


def test_all_rows_are_labelled_and_no_group_is_left(seen: dict[str, Any]) -> None:
    assert seen["label"] == {"rows": 420, "left": []}


def test_a_replica_that_is_released_gives_its_gpus_back(seen: dict[str, Any]) -> None:
    there = {item: counts for item, *counts in seen["shrunk"]["results"]}
    assert there["c"][0] == 2
    assert there["last"][1] == 1
    assert seen["shrunk"]["left"] == []


def test_no_group_is_left_by_a_pool_that_fails_or_is_interrupted(seen: dict[str, Any]) -> None:
    assert seen["broken"] == {"error": ["TeacherError", "cannot be made"], "left": []}
    assert seen["interrupted"]["there"] >= 1
    assert seen["interrupted"]["left"] == []
