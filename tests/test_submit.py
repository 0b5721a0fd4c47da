"""`ray job submit` to clusters of this machine: one of a fixed size, and one that grows."""

import contextlib
import json
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from llkd.config.run import RunConfig
from llkd.lab.chaos.verify import problems
from llkd.store.folder import Folder
from llkd.teacher.actor import CONTENT_FREE
from tests.conftest import ROOT, MakeConfig, config_maker
from tests.heads import ENDED, HEAD_TYPE, Head, SharedHead, head, node_type, wait_until
from tests.object_store import ObjectStore

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedHead]:
    shared = SharedHead(tmp_path_factory.mktemp("head"))
    yield shared
    shared.close()


@pytest.fixture
def ray_head(shared_head: SharedHead) -> Head:
    """A head that answers, whatever an earlier test did to it."""
    return shared_head.get()


def written(path: Path, config: RunConfig) -> Path:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def labelled(run_dir: Path | str) -> int:
    return len(Folder(f"{run_dir}/labels").shards())


def test_two_jobs_and_one_of_them_is_stopped_and_goes_on(
    tmp_path: Path, make_config: MakeConfig, ray_head: Head
) -> None:
    calls, small = tmp_path / "calls", {"epochs": 1, "resources": {"CPU": 1}}
    slow = written(
        tmp_path / "slow.yaml",
        make_config(
            test=None, student=small,
            teacher={"engine_args": {"delay": 0.02, "calls": str(calls)}},
        ),
    )  # fmt: skip
    other = written(
        tmp_path / "other.yaml",
        make_config(run_dir=str(tmp_path / "other"), test=None, student=small),
    )
    ray_head.submit(slow, name="stopped")
    ray_head.submit(f"file://{other}", name="other")
    ray_head.wait_for_job("stopped", lambda: labelled(tmp_path / "run") >= 2)
    ray_head.job("stop", "stopped")
    assert "was stopped" in ray_head.job("status", "stopped").stdout
    assert "Interrupted. Run the same command again" in ray_head.job("logs", "stopped").stdout
    assert not (tmp_path / "run/student").exists()

    done = ray_head.submit(slow)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Training, policy" in done.stdout
    assert (tmp_path / "run/student/model.safetensors").exists()
    counts = Counter(line.split()[0] for line in calls.read_text().splitlines())
    assert len(counts) == 420 + len(CONTENT_FREE)
    assert sum(n > 1 for n in counts.values()) <= 60  # one shard of the one actor

    ray_head.wait_for_job("other", lambda: ray_head.status("other") == "SUCCEEDED")
    assert "selection" in json.loads((tmp_path / "other/metrics.json").read_text())


def test_a_wrong_config_fails_the_job_with_the_reason(
    tmp_path: Path, make_config: MakeConfig, ray_head: Head
) -> None:
    failed = ray_head.submit(written(tmp_path / "config.yaml", make_config()), "student.epoch=3")
    assert failed.returncode != 0
    assert "did you mean 'epochs'" in failed.stdout


def test_what_is_uploaded_is_the_code(tmp_path: Path) -> None:
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, True, excludes=get_runtime_env_default_excludes())
    with zipfile.ZipFile(package) as files:
        names = files.namelist()
    folders = {name.split("/")[0] for name in names}
    assert {"jobs", "llkd", "pyproject.toml"} <= folders
    assert not {".git", ".venv", "demo", "runs", "docs", "notebooks"} & folders
    assert not [name for name in names if name.startswith("tests/") and name.count("/") > 1]
    assert package.stat().st_size < 2 << 20


NODE_TYPES: dict[str, Any] = {
    "gpu_worker": {"resources": {"CPU": 2, "GPU": 1, "gpu_worker": 1}, "max_workers": 3},
    "cpu_worker": {"resources": {"CPU": 2, "cpu_worker": 2}, "max_workers": 1},
}
"""A worker on a node of the first type takes all of its CPUs. The GPU exists for the scheduler only,
which adds no such node for work that needs none. The third node replaces the one that is killed,
which its provider still counts."""

TITLES = ("ray::MapWorker", "ray::RayTrainWorker", "ray::Map(")
"""Titles of the processes of a teacher, of training, and of tasks over shards."""


@dataclass
class Watch:
    """Records the nodes and processes of a cluster, twice a second."""

    cluster: Head
    nodes: list[Counter[str]] = field(default_factory=list)
    """Nodes of each type."""
    seen: list[Counter[tuple[str, str]]] = field(default_factory=list)
    """Processes by node type and title."""
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def is_alive(self) -> bool:
        """Whether it still records."""
        return self._thread.is_alive()

    def _look(self) -> None:
        types: dict[int, str] = {}
        while not self._stop.wait(0.5):
            there = {p.pid: p.info for p in psutil.process_iter(["ppid", "name", "cmdline"])}
            raylets = {raylet.pid: raylet for raylet in self.cluster.all_raylets(there)}
            for pid in raylets.keys() - types.keys():
                with contextlib.suppress(psutil.Error):
                    types[pid] = node_type(raylets[pid])
            alive = [types[pid] for pid in raylets if pid in types]
            self.nodes.append(
                Counter({name: alive.count(name) for name in [*NODE_TYPES, HEAD_TYPE]})
            )
            self.seen.append(
                Counter(
                    (types[info["ppid"]], title)
                    for info in there.values()
                    if info["ppid"] in raylets and info["ppid"] in types
                    for title in TITLES
                    if " ".join(info["cmdline"] or []).startswith(title)
                )
            )

    def of(self, title: str) -> set[str]:
        """The node types that had processes of a title."""
        return {name for found in self.seen for name, there in found if there == title}

    def together(self, title: str) -> list[int]:
        """The number of processes of a title, at each look."""
        return [sum(n for (_, there), n in found.items() if there == title) for found in self.seen]


@dataclass
class Grown:
    """A run on a cluster that grew, lost a node, and shrank."""

    config: RunConfig
    alone: RunConfig
    """The same on one node."""
    watch: Watch
    left: Counter[str]
    """Nodes by type, after the job when the idle ones had gone."""
    shards_at_kill: int
    logs: str


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, tiny_student: str, corpus_files: tuple[str, str],
    shared_head: SharedHead,
) -> RunConfig:  # fmt: skip
    """A run on one node."""
    folder, cpu = tmp_path_factory.mktemp("alone"), {"CPU": 1}
    config = config_maker(folder, tiny_student, corpus_files)(
        corpus={"rows_per_shard": 20}, teacher={"resources": cpu},
        student={"workers": 2, "resources": cpu},
    )  # fmt: skip
    done = shared_head.get().submit(written(folder / "config.yaml", config))
    assert done.returncode == 0, done.stdout
    return config


@pytest.fixture(scope="module", params=["disk, autoscaler 1", "object store, autoscaler 2"])
def grown(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_student: str,
    corpus_files: tuple[str, str], alone: RunConfig,
) -> Iterator[Grown]:  # fmt: skip
    folder = tmp_path_factory.mktemp("grown")
    make = config_maker(folder, tiny_student, corpus_files)
    if request.param.startswith("disk"):
        yield grow(folder, make, alone, autoscaler=1)
        return
    with ObjectStore() as store, store.in_environment():
        bucket = Folder(store.make_bucket("bucket"))
        for name, file in zip(("corpus", "test"), corpus_files, strict=True):
            bucket.write_bytes(f"{name}.parquet", Path(file).read_bytes())
        yield grow(
            folder, make, alone, autoscaler=2,
            run_dir=f"{bucket.uri}/run", corpus={"path": f"{bucket.uri}/corpus.parquet", "rows_per_shard": 20},
            test={"path": f"{bucket.uri}/test.parquet"},
        )  # fmt: skip


def grow(
    folder: Path, make: MakeConfig, alone: RunConfig, autoscaler: int, **sections: Any
) -> Grown:
    """Submit a run to a cluster, and kill a node when there are two teachers."""
    allowance = folder / "allowance"
    allowance.write_text("50")
    config = make(
        teacher={
            "replicas": [1, 2], "resources": {"CPU": 2, "GPU": 1, "gpu_worker": 1},
            "engine_args": {"allowance": str(allowance)},
        },
        student={"workers": 2, "resources": {"CPU": 2, "gpu_worker": 1}},
        **{"corpus": {"rows_per_shard": 20}, **sections},
    )  # fmt: skip
    with head(folder, NODE_TYPES, autoscaler=autoscaler) as cluster, Watch(cluster) as watch:
        assert cluster.autoscaler() == autoscaler
        cluster.submit(written(folder / "config.yaml", config), name="grown")
        cluster.wait_for_job("grown", lambda: max(watch.together("ray::MapWorker"), default=0) == 2)
        allowance.write_text("150")  # 7 shards each, of 27: both have begun when there are 9
        cluster.wait_for_job("grown", lambda: labelled(config.run_dir) > 8)
        cluster.raylets("gpu_worker")[0].kill()
        shards = labelled(config.run_dir)
        allowance.unlink()
        wait_until(lambda: cluster.status("grown") in ENDED)
        logs = cluster.job("logs", "grown").stdout
        assert cluster.status("grown") == "SUCCEEDED", logs
        wait_until(lambda: watch.nodes[-1]["gpu_worker"] == 0, watch.is_alive)
        left = watch.nodes[-1]
    return Grown(config, alone, watch, left, shards, logs)


def test_a_run_that_grows_and_loses_a_node_is_that_of_one_node(grown: Grown) -> None:
    assert problems(grown.config, grown.alone) == []
    ours, theirs = (
        Folder(config.run_dir).read_json("metrics.json") for config in (grown.config, grown.alone)
    )
    assert ours["teacher"]["test"] == theirs["teacher"]["test"]
    assert ours["selection"] == theirs["selection"]
    assert ours["student"]["test"] == theirs["student"]["test"]
    assert 0 < grown.shards_at_kill < 27


def test_nodes_come_when_work_waits_and_go_when_it_is_done(grown: Grown) -> None:
    for name in NODE_TYPES:
        counts = [nodes[name] for nodes in grown.watch.nodes]
        assert counts[0] == 0
        assert max(counts) >= {"gpu_worker": 2, "cpu_worker": 1}[name]
    assert grown.left["gpu_worker"] == 0


def test_the_pool_grows_from_one_to_two_and_is_gone_before_training(grown: Grown) -> None:
    teachers = grown.watch.together("ray::MapWorker")
    trainers = grown.watch.together("ray::RayTrainWorker")
    assert {1, 2} <= set(teachers)
    assert max(trainers) == 2
    began = next(look for look, count in enumerate(trainers) if count)
    assert teachers[began] == 0


def test_work_is_on_the_nodes_that_are_meant_for_it(grown: Grown) -> None:
    assert grown.watch.of("ray::MapWorker") == {"gpu_worker"}
    assert grown.watch.of("ray::RayTrainWorker") == {"gpu_worker"}
    assert "cpu_worker" in grown.watch.of("ray::Map(")
