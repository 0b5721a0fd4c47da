"""The jobs as users run them: real processes, a Ray of their own, real kills."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from llkd.arrays import matrix
from llkd.storage import Folder
from tests.conftest import ROOT, MakeConfig

pytestmark = pytest.mark.timeout(300)

WriteConfig = Callable[..., Path]


@pytest.fixture
def write_config(tmp_path: Path, make_config: MakeConfig) -> WriteConfig:
    def write(name: str = "config.yaml", **sections: Any) -> Path:
        config = make_config(**sections).model_dump(mode="json")
        config["teacher"].pop("resources")  # the jobs find out for themselves
        config["student"].pop("resources")
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config))
        return path

    return write


def environment(**extra: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return {**env, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **extra}


def start(job: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, f"jobs/{job}.py", *map(str, arguments)], cwd=ROOT, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run(job: str, *arguments: object, status: int = 0) -> str:
    process = start(job, *arguments)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == status, output
    return output


def logprobs_of(run_dir: Path) -> dict[int, np.ndarray]:
    folder = Folder(str(run_dir / "labels"))
    return {s: matrix(folder.read_shard(s)["logprobs"]) for s in sorted(folder.shards())}


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_whole_run_its_figures_and_running_it_again(
    tmp_path: Path, write_config: WriteConfig
) -> None:
    calls = tmp_path / "calls"
    config = write_config(
        teacher={"engine_args": {"calls": str(calls)}}, student={"epochs": 3},
        corpus={"label_column": "label"},
    )  # fmt: skip
    output = run("run", config)
    for words in (
        "label: 540 rows",
        "epoch 3/3 training",
        "teacher",
        "student",
        "macro-F1",
        "Time",
    ):
        assert words in output
    assert "WARNING" not in output
    assert "pid=" not in output
    run_dir = tmp_path / "run"
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["teacher"]["rows"] == 420
    assert metrics["teacher"]["rows_per_second"] > 0
    assert metrics["teacher"]["corpus"].keys() >= {"accuracy", "macro_f1", "ece", "auroc"}
    assert metrics["student"]["test"].keys() >= {"accuracy", "macro_f1", "ece", "per_class"}
    assert metrics["teacher"]["test"]["rows"] == metrics["student"]["test"]["rows"] == 120
    assert 0 < metrics["selection"]["row_visits_fraction"] < 0.6
    assert metrics["seconds"].keys() == {"ingest", "label", "distill", "evaluate", "total"}
    assert (run_dir / "run.yaml").exists()
    assert list((run_dir / "logs").iterdir())
    before = calls.read_text()
    again = run("run", config)
    assert calls.read_text() == before
    assert "scoring" not in again
    assert json.loads((run_dir / "metrics.json").read_text())["student"] == metrics["student"]

    check_the_student_is_what_transformers_loads(run_dir)


def check_the_student_is_what_transformers_loads(run_dir: Path) -> None:
    import pyarrow.parquet as pq
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(run_dir / "student"), top_k=None)
    names = ["sport", "tech", "trade"]
    assert list(classify.model.config.id2label.values()) == names
    shard = pq.read_table(run_dir / "test/part-00000.parquet")
    ours = matrix(pq.read_table(run_dir / "test_predictions/part-00000.parquet")["probs"])
    for text, probs in zip(shard["text"].to_pylist(), ours, strict=True):
        theirs = {entry["label"]: entry["score"] for entry in classify([text])[0]}
        assert [theirs[name] for name in names] == pytest.approx(probs.tolist(), abs=1e-4)


def test_the_stages_one_by_one(tmp_path: Path, write_config: WriteConfig) -> None:
    config = write_config()
    assert "Run jobs/ingest.py" in run("label", config, status=1)
    run("ingest", config)
    run("label", config)
    run("distill", config, "student.epochs=1")
    assert "macro-F1" in run("evaluate", config, "student.epochs=1")
    assert (tmp_path / "run/student/model.safetensors").exists()
    assert "student.epochs: was 1, now 2" in run("evaluate", config, status=1)


def test_kill_in_mid_labelling_and_in_mid_training_loses_nothing(
    tmp_path: Path, write_config: WriteConfig
) -> None:
    run(
        "label", *[ingested(write_config("plain.yaml", run_dir=str(tmp_path / "plain"), test=None))]
    )
    calls, run_dir = tmp_path / "calls", tmp_path / "run"
    slow = {"engine_args": {"calls": str(calls), "delay": 0.02}}
    config = write_config(test=None, teacher=slow, student={"epochs": 3})
    process = start("run", config)
    wait_until(lambda: len(Folder(str(run_dir / "labels")).shards()) >= 2, process)
    kill(process)
    assert len(Folder(str(run_dir / "labels")).shards()) < 7
    process = start("run", config)
    wait_until(lambda: (run_dir / "epochs/01/stats.json").exists(), process)
    kill(process)
    assert not (run_dir / "student").exists()
    done = [path.stat().st_mtime_ns for path in sorted((run_dir / "labels").glob("part-*"))]
    run("run", config)
    assert done == [p.stat().st_mtime_ns for p in sorted((run_dir / "labels").glob("part-*"))]
    plain, killed = logprobs_of(tmp_path / "plain"), logprobs_of(run_dir)
    assert plain.keys() == killed.keys() == set(range(7))
    for shard in plain:
        assert np.array_equal(plain[shard], killed[shard])
    # Only what was in flight at the kill was labelled twice: at most one shard of an actor.
    twice = [
        k for k, n in Counter(x.split()[0] for x in calls.read_text().splitlines()).items() if n > 1
    ]
    assert len(twice) <= 60
    assert (run_dir / "student/model.safetensors").exists()
    assert not list(run_dir.rglob(".*.tmp"))


def ingested(config: Path) -> Path:
    run("ingest", config)
    return config


def test_a_killed_training_worker_costs_its_epoch_only(
    tmp_path: Path, write_config: WriteConfig
) -> None:
    import psutil

    epochs = tmp_path / "run/epochs"
    config = write_config(test=None, student={"epochs": 3, "workers": 2, "batch_size": 2})
    process = start("run", config)

    def first_epoch_is_done() -> bool:
        stats = epochs / "00/stats.json"
        return stats.exists() and "training_loss" in json.loads(stats.read_text())

    wait_until(lambda: first_epoch_is_done() and (epochs / "01/stats.json").exists(), process)
    first = {path: path.stat().st_mtime_ns for path in (epochs / "00").rglob("*.*")}
    second = {path: path.stat().st_mtime_ns for path in (epochs / "01").rglob("part-*")}
    workers = [
        child for child in psutil.Process(process.pid).children(recursive=True)
        if "RayTrainWorker" in " ".join(child.cmdline())
    ]  # fmt: skip
    assert len(workers) == 2
    workers[0].kill()
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in first.items())
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in second.items())
    assert output.count("epoch 2/3 training") >= 2  # begun again
    assert {p.name for p in epochs.iterdir() if p.is_dir()} == {"00", "01", "02"}


WRONG: dict[str, tuple[dict[str, Any], list[str], int, str]] = {
    "no such corpus": ({}, ["corpus.path=nothing.csv"], 1, "nothing.csv does not exist"),
    "misspelt setting": ({}, ["student.epoch=3"], 2, "did you mean 'epochs'"),
    "wrong column": ({}, ["corpus.text_column=body"], 1, "no column 'body'"),
    "no such model": ({}, ["teacher.engine=vllm", "teacher.model=./nothing"], 1, "does not exist"),
}


@pytest.mark.parametrize(("sections", "overrides", "status", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_told_in_a_line_and_fails(
    write_config: WriteConfig, sections: dict[str, Any], overrides: list[str], status: int,
    message: str,
) -> None:  # fmt: skip
    output = run("run", write_config(**sections), *overrides, status=status)
    assert message in output
    assert "Traceback" not in output
    if status == 1:
        assert "logs/run-" in output


def test_help_tells_what_a_job_does() -> None:
    for job in ("run", "ingest", "label", "distill", "evaluate", "prepare_demo"):
        output = run(job, "--help")
        assert "usage:" in output
        assert "Safe to run again" in output or "left alone" in output


def test_a_local_ray_listens_on_this_machine_only(
    tmp_path: Path, write_config: WriteConfig
) -> None:
    config = write_config(
        test=None, teacher={"engine_args": {"delay": 0.01}},
        student={"workers": 2, "batch_size": 2, "epochs": 1},
    )  # fmt: skip
    process = start("run", config)
    seen: set[str] = set()
    phases: set[str] = set()

    def training() -> bool:
        seen.update(listening_addresses(process.pid))
        phases.update(path.name for path in (tmp_path / "run").glob("*"))
        return (tmp_path / "run/epochs/00/stats.json").exists()

    try:
        wait_until(training, process)
        for _ in range(10):
            seen.update(listening_addresses(process.pid))
            time.sleep(0.2)
    finally:
        kill(process)
    assert {"labels", "epochs"} <= phases
    assert seen
    assert seen <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def listening_addresses(root: int) -> set[str]:
    """Addresses on which a process or its descendants listen."""
    import psutil

    found = set()
    for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
        try:
            connections = process.net_connections(kind="inet")
        except psutil.Error:
            continue
        found |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    return found


@pytest.fixture
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node with token authentication; (dashboard address, environment)."""
    ports = [free_port() for _ in range(7)]
    scratch = Path("/tmp") / f"llkd-test-{os.getpid()}"  # socket paths must be short
    env = environment(
        RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef" * 4,
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    )  # fmt: skip
    env.pop("PYTHONPATH")
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("w") as file:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
             "--node-ip-address=127.0.0.1", f"--port={ports[0]}", "--dashboard-host=127.0.0.1",
             f"--dashboard-port={ports[1]}", f"--ray-client-server-port={ports[2]}",
             # Of their own: another Ray's agents may hold the usual ones.
             f"--dashboard-agent-listen-port={ports[3]}",
             f"--dashboard-agent-grpc-port={ports[4]}", f"--metrics-export-port={ports[5]}",
             f"--runtime-env-agent-port={ports[6]}",
             "--num-cpus=4", "--disable-usage-stats", f"--temp-dir={scratch}"],
            env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{ports[1]}"
    try:
        deadline = time.monotonic() + 60
        while not answers(ports[1]):
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield address, env
    finally:
        head.terminate()
        try:
            head.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def submit(
    address: str, env: dict[str, str], *arguments: object
) -> subprocess.CompletedProcess[str]:
    for _ in range(30):  # the head answers some seconds before it can run jobs
        done = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", address,
             "--working-dir", str(ROOT), "--", sys.executable, "jobs/run.py", *map(str, arguments)],
            env=env, cwd=ROOT, capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        if "No available agent" not in done.stderr:
            break
        time.sleep(1)
    return done


def test_ray_job_submit(
    tmp_path: Path, write_config: WriteConfig, ray_head: tuple[str, dict[str, str]]
) -> None:
    address, env = ray_head
    config = write_config(student={"workers": 2})
    done = submit(address, env, config)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "succeeded" in done.stdout
    assert "macro-F1" in done.stdout
    assert "student" in json.loads((tmp_path / "run/metrics.json").read_text())
    failed = submit(address, env, config, "corpus.text_column=body")
    assert failed.returncode != 0
    assert "corpus.text_column" in failed.stdout
