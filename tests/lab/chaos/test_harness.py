"""The parts of the fault injection: its victims, and its report."""

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
import ray
from rich.console import Console

from llkd.config.run import RunConfig
from llkd.errors import ChaosError, ConfigError
from llkd.lab.chaos import harness
from llkd.lab.chaos.harness import (
    FaultPlan,
    Harness,
    forget_earlier,
    require_own_cluster,
    run_chaos,
)
from llkd.lab.chaos.injector import (
    MARK,
    Injector,
    marked_environment,
    other_jobs,
    processes_with,
    victims,
)
from llkd.lab.chaos.outcome import Fault, RunOutcome, outcome_table, verdict
from llkd.lab.chaos.verify import problems
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, write_manifest
from llkd.store.schema import RunLayout
from tests.conftest import MakeConfig
from tests.fakes import TOPICS
from tests.helpers import wait_until

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


def test_only_processes_with_the_mark_are_victims() -> None:
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
        assert sorted(processes_with(mark)) == sorted(
            [f"process {ours.pid}, ray::MapWorker 100", f"process {task.pid}, ray::Map( 100"]
        )
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
        injector, victim = Injector("ours"), psutil.Process(ours)
        (left,) = injector.left()
        assert left.endswith(f"(process {ours})")
        assert str(injector.inject("actor", random)).startswith("ray::MapWorker")
        victim.wait()
        assert injector.left() == []
        assert injector.inject("actor", random) is None
        assert psutil.Process(theirs).status() != psutil.STATUS_ZOMBIE
        assert len(other_jobs()) == 2
        assert all("MapWorker" in command for command in other_jobs())
    while other_jobs():  # both have ended, and Ray learns of it
        time.sleep(0.1)


def test_no_fault_hits_a_whole_node_of_a_cluster_with_other_jobs() -> None:
    require_own_cluster(["actor", "node", "store"], [])
    require_own_cluster(["actor", "driver"], ["python train.py"])
    with pytest.raises(ChaosError, match=r"store would hit .* python train.py.* --kinds"):
        require_own_cluster(["actor", "store"], ["python train.py"])


def test_a_part_of_the_labels_is_refused_before_anything_starts(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "LocalCluster", None)
    config, plan = make_config(label={"budget": 0.5}), FaultPlan(1, 1, ["actor"], 0)
    with pytest.raises(ConfigError, match=r"label.budget is 0.5: .* label.budget=1"):
        run_chaos(config, plan, 0.0, Console(file=io.StringIO()))


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


class NoVictims:
    """The injector of a cluster without runs."""

    def inject(self, kind: str, random: np.random.Generator) -> str | None:
        return None


MakeHarness = Any


@pytest.fixture
def make_harness(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> MakeHarness:
    """A harness whose runs are a shell script, which has the number of its start in $START."""

    def make(script: str) -> Harness:
        run, starts = tmp_path / "run.sh", tmp_path / "starts"
        run.write_text(f"#!/bin/bash\necho >> {starts}; START=$(wc -l < {starts})\n{script}\n")
        run.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(run))
        monkeypatch.setattr(harness, "GAP_SECONDS", (0.0, 0.0))
        return Harness(
            make_config(), NoVictims(), None, "nowhere:1", f"mark of {tmp_path}", tmp_path,  # type: ignore[arg-type]
            Console(file=io.StringIO()),
        )  # fmt: skip

    return make


def test_a_run_that_hangs_without_faults_is_ended_and_reported(
    make_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "STALLED_SECONDS", 0.5)
    hanging = make_harness("exec sleep 100")
    with pytest.raises(
        ChaosError, match=r"without faults; the end of its log: .*undisturbed-01.log"
    ):
        hanging.undisturbed()
    assert processes_with(hanging.mark) == []


def test_each_failed_start_must_log_its_error(make_harness: MakeHarness) -> None:
    script = "[ $START = 1 ] && echo StorageError: no room && exit 1; [ $START = 2 ] && exit 1"
    outcome = make_harness(f"{script}; exit 0").run_with_faults(3, [], seed=0)
    assert outcome.statuses == [1, 1, 0]
    (problem,) = outcome.problems
    assert "no error in its log" in problem
    assert problem.endswith("03-02.log")


def test_faults_without_a_victim_are_reported(make_harness: MakeHarness) -> None:
    outcome = make_harness("[ $START = 1 ] && exec sleep 100; exit 0").run_with_faults(
        0, ["engine", "driver", "engine"], seed=0
    )
    assert [fault.kind for fault in outcome.faults] == ["driver"]
    assert outcome.missed == ["engine", "engine"]
    assert verdict([outcome]).endswith("2 of 3 faults found no victim (engine: 2).")
    table = outcome_table([outcome])
    assert table.title == "1 of 3 faults, 1 runs"
    assert [list(column.cells) for column in table.columns] == [
        ["engine", "driver"], ["0", "0"], ["0", "1"], ["2", "0"],
    ]  # fmt: skip


def test_a_driver_that_ended_by_itself_was_not_killed(make_harness: MakeHarness) -> None:
    ended = make_harness("exit 0")
    with ended._started(ended.of_run("00"), 1) as (process, _):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert ended._inject("driver", process, np.random.default_rng(0)) is None
        assert process.returncode == 0


def test_the_verdict_follows_from_the_problems() -> None:
    hit = RunOutcome(0, faults=[Fault(0, "actor", "one")])
    assert verdict([hit]) == "Nothing lost, nothing doubled, nothing left over."
    with pytest.raises(ChaosError, match=r"None of 2 .* \(engine: 1, task: 1\)"):
        verdict([RunOutcome(0, missed=["task"]), RunOutcome(1, missed=["engine"])])
    with pytest.raises(ChaosError, match="1 problems in 2 runs"):
        verdict([hit, RunOutcome(1, problems=["1 rows lost"])])


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


def test_stores_are_filled_though_the_first_agent_is_dead(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    @ray.remote(num_cpus=0)
    class Agent:
        def fill_store(self, seconds: float) -> str:
            return "object store"

    agents = {str(number): Agent.remote() for number in range(2)}
    injector = Injector("mark")
    monkeypatch.setattr(injector, "_refresh", lambda: None)
    monkeypatch.setattr(injector, "_by_node", agents)
    assert injector.fill_stores(0.0) == "object store on 2 nodes"
    for agent, expected in ((agents["0"], "object store on 1 nodes"), (agents["1"], None)):
        ray.kill(agent)
        wait_until(lambda agent=agent: _is_dead(agent))  # killing takes effect later
        assert injector.fill_stores(0.0) == expected


def _is_dead(agent: Any) -> bool:
    try:
        ray.get(agent.fill_store.remote(0.0))
    except ray.exceptions.RayActorError:
        return True
    return False
