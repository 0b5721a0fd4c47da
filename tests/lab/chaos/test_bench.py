"""The parts of the bench that disturbs runs: whom it strikes, and what it says of it."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from rich.console import Console

from llkd.config.run import RunConfig
from llkd.errors import ChaosError, ConfigError
from llkd.lab.chaos import bench
from llkd.lab.chaos.bench import (
    Bench,
    Disturbances,
    forget_earlier,
    require_own_cluster,
    run_chaos,
)
from llkd.lab.chaos.outcome import Ordeal, Strike, outcome_table, verdict
from llkd.lab.chaos.verify import problems
from llkd.lab.chaos.warden import (
    MARK,
    Wardens,
    marked_environment,
    other_jobs,
    processes_with,
    victims,
)
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, write_manifest
from llkd.store.schema import RunLayout
from tests.conftest import MakeConfig
from tests.fakes import TOPICS

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@contextlib.contextmanager
def sleeper(title: str, environment: Mapping[str, str]) -> Iterator[psutil.Process]:
    """A process of that title."""
    shell = f"echo && exec -a '{title}' sleep 100"
    with subprocess.Popen(["bash", "-c", shell], env=environment, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = psutil.Process(child.pid)
        try:
            while found.cmdline()[:1] != [title]:  # empty in the midst of exec
                time.sleep(0.01)
            yield found
        finally:
            child.kill()


def test_only_processes_with_the_mark_are_struck() -> None:
    mark = uuid.uuid4().hex  # no other test of this machine has it
    plain = {name: value for name, value in os.environ.items() if name != MARK}
    with (
        sleeper("ray::MapWorker", {**plain, MARK: mark}) as ours,
        sleeper("ray::MapWorker", {**plain, MARK: "another"}) as another,
        sleeper("ray::MapWorker", plain) as unmarked,
        sleeper("ray::Map(", {**plain, MARK: mark}) as task,
    ):
        processes = [another, unmarked, ours, task]
        assert [process for _, process in victims(processes, ["actor"], mark)] == [ours]
        assert [process for _, process in victims(processes, ["task"], mark)] == [task]
        assert sorted(processes_with(mark)) == sorted([ours.pid, task.pid])
        assert processes_with("nobody's") == []


def test_the_mark_is_added_to_the_config_of_a_submitted_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    submitted = {
        "metadata": {"job_submission_id": "one"},
        "runtime_env": {"working_dir": "gcs://code.zip", "env_vars": {"KEY": "value"}},
    }
    monkeypatch.setenv(JOB_CONFIG, json.dumps(submitted))
    environment = marked_environment("ours")
    assert environment[MARK] == "ours"
    submitted["runtime_env"]["env_vars"][MARK] = "ours"  # type: ignore[index]
    assert json.loads(environment[JOB_CONFIG]) == submitted


DRIVER = """
import os, sys, ray
ray.init(log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=0)
class MapWorker:
    def pid(self):
        return os.getpid()

worker = MapWorker.remote()
print(ray.get(worker.pid.remote()), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def job(address: str, environment: Mapping[str, str]) -> Iterator[int]:
    """A job of the cluster; yields the process of its actor."""
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], env={**environment, "RAY_ADDRESS": address}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as driver:  # fmt: skip
        assert driver.stdout is not None
        yield int(driver.stdout.readline())


def test_other_jobs_of_a_cluster_are_seen_and_left_alone(local_ray: None) -> None:
    import ray

    address, random = ray.get_runtime_context().gcs_address, np.random.default_rng(0)
    assert other_jobs() == []
    with job(address, os.environ) as theirs, job(address, marked_environment("ours")) as ours:
        wardens, struck = Wardens("ours"), psutil.Process(ours)
        (left,) = wardens.left()
        assert left.endswith(f"(process {ours})")
        assert str(wardens.strike("actor", random)).startswith("ray::MapWorker")
        psutil.wait_procs([struck], timeout=60)
        assert wardens.left() == []
        assert wardens.strike("actor", random) is None
        assert psutil.Process(theirs).status() != psutil.STATUS_ZOMBIE
        assert len(other_jobs()) == 2
        assert all("MapWorker" in command for command in other_jobs())
    deadline = time.monotonic() + 60
    while other_jobs() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert other_jobs() == []  # both have ended


def test_whole_nodes_are_not_struck_where_others_work() -> None:
    require_own_cluster(["actor", "node", "store"], [])
    require_own_cluster(["actor", "driver"], ["python train.py"])
    with pytest.raises(ChaosError, match=r"store would strike .* python train.py.* --kinds"):
        require_own_cluster(["actor", "store"], ["python train.py"])


def test_a_part_of_the_labels_is_refused_before_anything_starts(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "LocalCluster", None)
    config, wanted = make_config(label={"budget": 0.5}), Disturbances(1, 1, ["actor"], 0)
    with pytest.raises(ConfigError, match=r"label.budget is 0.5: .* label.budget=1"):
        run_chaos(config, wanted, 0.0, Console(file=io.StringIO()))


def test_what_an_earlier_call_left_is_deleted_and_nothing_else(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    chaos = tmp_path / "run/chaos"
    for name in ("00/labels", "17/labels", "undisturbed/labels", "notes", "2"):
        (chaos / name).mkdir(parents=True)
    for name in ("00.yaml", "00-01.log", "undisturbed-01.log", "00.txt", "figures.json"):
        (chaos / name).write_text("")
    forget_earlier(make_config())
    assert sorted(path.name for path in chaos.iterdir()) == ["00.txt", "2", "figures.json", "notes"]


class NobodyThere:
    """Wardens of a cluster where no run is."""

    def strike(self, kind: str, random: np.random.Generator) -> str | None:
        return None


MakeBench = Any


@pytest.fixture
def make_bench(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> MakeBench:
    """A bench whose runs are a shell script, which is told in $START the number of its start."""

    def make(script: str) -> Bench:
        run, starts = tmp_path / "run.sh", tmp_path / "starts"
        run.write_text(f"#!/bin/bash\necho >> {starts}; START=$(wc -l < {starts})\n{script}\n")
        run.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(run))
        monkeypatch.setattr(bench, "GAP_SECONDS", (0.0, 0.0))
        return Bench(
            make_config(), NobodyThere(), None, "nowhere:1", f"mark of {tmp_path}", tmp_path,  # type: ignore[arg-type]
            Console(file=io.StringIO()),
        )  # fmt: skip

    return make


def test_a_run_that_hangs_when_left_in_peace_is_ended_and_told(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "STALLED_SECONDS", 0.5)
    hanging = make_bench("exec sleep 100")
    with pytest.raises(ChaosError, match=r"left in peace.*undisturbed-01.log"):
        hanging.undisturbed()
    assert processes_with(hanging.mark) == []


def test_each_start_has_to_say_itself_why_it_failed(make_bench: MakeBench) -> None:
    script = "[ $START = 1 ] && echo StorageError: no room && exit 1; [ $START = 2 ] && exit 1"
    ordeal = make_bench(f"{script}; exit 0").ordeal(3, [], seed=0)
    assert ordeal.statuses == [1, 1, 0]
    (problem,) = ordeal.problems
    assert "no word of why" in problem
    assert problem.endswith("03-02.log")


def test_what_found_no_victim_is_told(make_bench: MakeBench) -> None:
    ordeal = make_bench("sleep 1").ordeal(0, ["engine", "driver", "engine"], seed=0)
    assert [strike.kind for strike in ordeal.strikes] == ["driver"]
    assert ordeal.unstruck == ["engine", "engine"]
    assert verdict([ordeal]).endswith("2 of 3 disturbances found no victim (engine: 2).")
    table = outcome_table([ordeal])
    assert table.title == "1 of 3 disturbances, 1 runs"
    assert [list(column.cells) for column in table.columns] == [
        ["engine", "driver"], ["0", "0"], ["0", "1"], ["2", "0"],
    ]  # fmt: skip


def test_a_driver_that_ended_by_itself_was_not_struck(make_bench: MakeBench) -> None:
    ended = make_bench("exit 0")
    with ended._started(ended.of_run("00"), 1) as (process, _):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert ended._strike("driver", process, np.random.default_rng(0)) is None
        assert process.returncode == 0


def test_the_exit_status_is_of_what_was_found() -> None:
    struck = Ordeal(0, strikes=[Strike(0, "actor", "one")])
    assert verdict([struck]) == "Nothing lost, nothing doubled, nothing left over."
    with pytest.raises(ChaosError, match=r"None of 2 .* \(engine: 1, task: 1\)"):
        verdict([Ordeal(0, unstruck=["task"]), Ordeal(1, unstruck=["engine"])])
    with pytest.raises(ChaosError, match="1 problems in 2 runs"):
        verdict([struck, Ordeal(1, problems=["1 rows lost"])])


def write_rows(uri: str, rows: list[int], **columns: list[Any]) -> None:
    Folder(uri).write_shard(0, pa.table({"row": pa.array(rows, pa.int32()), **columns}))


def write_run(config: RunConfig, answered: list[list[int]], refused: list[list[int]]) -> None:
    """A finished run over one shard of six rows, of a teacher for each list; one epoch."""
    layout = RunLayout(config.run_dir)
    write_rows(layout.rows("corpus"), list(range(6)), text=[*"abcdef"])
    kept = sorted(set.intersection(*map(set, answered)))
    teachers = [RunLayout(config.run_dir, each.teacher_number) for each in config.of_each_teacher]
    labels = [(layout, kept), *zip(teachers, answered, strict=True)] if teachers else [
        (layout, kept)
    ]  # fmt: skip
    for where, rows in labels:
        logprobs = pa.array([[-1.0] * len(TOPICS)] * len(rows), pa.list_(pa.float32(), 3))
        write_rows(where.labels("corpus"), rows, logprobs=logprobs)
    for where, rows in zip(teachers or [layout], refused, strict=True):
        write_rows(where.label_rejects("corpus"), rows)
    write_rows(layout.uncertainty(0), kept)
    write_rows(layout.selection(0), kept[:2])
    for uri in (layout.epochs, layout.student, layout.rows("corpus"), layout.labels("corpus")):
        write_manifest(Folder(uri), Manifest("", {}, "").finished({"epochs": 1}))
    Folder(layout.root).write_json("metrics.json", {})


def test_epochs_that_patience_left_out_are_not_missed(make_config: MakeConfig) -> None:
    config = make_config(
        test=None, student={"epochs": 9, "patience": 1, "validation_fraction": 0.4}
    )
    write_run(config, [[0, 1, 2, 4, 5]], [[3]])
    assert problems(config, config) == []
    write_rows(RunLayout(config.run_dir).uncertainty(0), [0, 1, 2, 4])
    (found,) = problems(config, config)
    assert "rows of its labels" in found


def test_rows_that_any_of_several_teachers_refused_are_not_lost(make_config: MakeConfig) -> None:
    config = make_config(test=None, teacher=None, teachers=[{"model": "a"}, {"model": "b"}])
    answered = [[0, 1, 2, 4], [0, 1, 4, 5]]
    write_run(config, answered, [[3, 5], [2, 3]])
    assert problems(config, config) == []
    write_run(config, answered, [[3], [2, 3]])
    first, both = problems(config, config)
    assert first.endswith("teachers/00/labels: shard 0 has 1 rows lost")
    assert both.endswith("run/labels: shard 0 has 1 rows lost")
