"""The jobs as users run them: real processes, a Ray of their own, real kills."""

import contextlib
import json
import os
import runpy
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from llkd.ingest.stage import ingest
from llkd.store.arrays import matrix
from llkd.store.folder import Folder
from llkd.store.lock import held
from llkd.teacher.actor import CONTENT_FREE
from llkd.teacher.stage import label
from tests.conftest import ROOT, MakeConfig, SilentTracker, config_maker
from tests.heads import free_port
from tests.helpers import (
    ended,
    environment,
    logprobs_of,
    run_job,
    started,
    wait_until,
    written,
)
from tests.in_process import in_process
from tests.results.report.browser import CHROMIUM, PHONE, opened

WriteConfig = Callable[..., Path]


@pytest.fixture
def write_config(tmp_path: Path, make_config: MakeConfig) -> WriteConfig:
    def write(**sections: Any) -> Path:
        return written(tmp_path / "config.yaml", make_config(**sections))

    return write


def test_a_whole_run_its_figures_and_running_it_again(
    tmp_path: Path, write_config: WriteConfig
) -> None:
    calls = tmp_path / "calls"
    config = write_config(
        teacher={"engine_args": {"calls": str(calls)}}, student={"epochs": 3},
        corpus={"label_column": "label"},
    )  # fmt: skip
    output = run_job("run", config)
    for words in (
        "label: 540 rows",
        "epoch 3/3 training",
        "teacher",
        "student",
        "macro-F1",
        "Time",
        "run/report.html",
    ):
        assert words in output
    assert "WARNING" not in output
    assert "pid=" not in output
    run_dir = tmp_path / "run"
    written = [path for path in run_dir.rglob("*") if path.is_file()]
    assert {"run.yaml", "manifest.json", "stats.json"} <= {path.name for path in written}
    assert "canary" not in output
    assert not [path for path in written if b"canary" in path.read_bytes()]
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["teacher"]["rows"] == 420
    assert metrics["teacher"]["rows_per_second"] > 0
    assert metrics["teacher"]["corpus"].keys() >= {"accuracy", "macro_f1", "ece", "auroc"}
    assert metrics["student"]["test"].keys() >= {"accuracy", "macro_f1", "ece", "per_class"}
    assert metrics["teacher"]["test"]["rows"] == metrics["student"]["test"]["rows"] == 120
    assert 0 < metrics["selection"]["row_visits_fraction"] < 0.6
    assert metrics["seconds"].keys() == {"ingest", "label", "distill", "evaluate", "total"}
    assert (run_dir / "run.yaml").exists()
    (log,) = (run_dir / "logs").glob("run-*.jsonl")
    told = Counter(json.loads(line)["stage"] for line in log.read_text().splitlines())
    assert told == {"ingest": 8, "label": 8, "score": 21, "train": 3, "predict": 1}
    before = calls.read_text()
    again = run_job("run", config)
    assert calls.read_text() == before
    assert "scoring" not in again
    assert json.loads((run_dir / "metrics.json").read_text())["student"] == metrics["student"]

    check_the_student_is_what_transformers_loads(run_dir)
    output = run_job("predict", config)
    assert "student on corpus: 420 rows" in output
    assert "Gold      420 rows: accuracy" in output
    assert len(list((run_dir / "predictions/corpus").glob("part-*.parquet"))) == 7
    check_the_report(run_dir, config)


def check_the_report(run_dir: Path, config: Path) -> None:
    report = run_dir / "report.html"
    before = report.stat().st_mtime_ns
    with held(str(run_dir)):  # another job works there
        assert "report.html" in run_job("report", config)
    assert report.stat().st_mtime_ns > before
    if CHROMIUM is None:
        return
    with opened(report, PHONE) as seen:
        assert seen.page.locator("[data-figure]").count() > 12
        assert seen.undrawn == []
        assert seen.overflow <= 0
        said = seen.page.locator("main").inner_text()
        for words in ("Every step is done", "420", "Likely mistakes of the teacher"):
            assert words in said
        assert seen.troubles == []


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


@dataclass
class Killed:
    """Observations of a run that was killed three times."""

    run_dir: Path
    calls: list[str]
    """The hash of each labelled text, once for each time it was labelled."""
    labels_at_kill: dict[Path, int]
    """Modification times of the label shards that existed at the first kill."""
    labels: dict[int, np.ndarray]
    undisturbed: dict[int, np.ndarray]
    epochs_at_kill: dict[Path, int]
    """Modification times of the files of epochs finished before the third kill."""
    output: str
    """Console output of the last start."""
    addresses: set[str]
    """Addresses on which any process of the runs listened."""


@pytest.fixture(scope="module")
def killed(
    local_ray: None, tmp_path_factory: pytest.TempPathFactory, tiny_student: str,
    corpus_files: tuple[str, str],
) -> Killed:  # fmt: skip
    """SIGKILL of the driver during labelling, of the driver during training, and of a worker."""
    folder = tmp_path_factory.mktemp("killed")
    run_dir, calls, allowance = folder / "run", folder / "calls", folder / "allowance"
    allowance.write_text("150")
    make = config_maker(folder, tiny_student, corpus_files)
    config = written(
        folder / "config.yaml",
        make(
            test=None,
            teacher={"engine_args": {"calls": str(calls), "allowance": str(allowance)}},
            student={"epochs": 3, "workers": 2, "batch_size": 2},
            selection={"class_floor": 1.0},  # all rows, so that training lasts long enough to be killed
        ),
    )  # fmt: skip
    addresses: set[str] = set()

    def note_addresses() -> None:
        addresses.update(listening_addresses(process.pid))
        time.sleep(0.2)  # takes a while

    with started("run", config) as process:
        labels = Folder(str(run_dir / "labels"))
        wait_until(lambda: len(labels.shards()) >= 2, process, note_addresses)
        process.kill()
    labels_at_kill = times(run_dir.glob("labels/part-*"))
    allowance.unlink()

    with started("run", config) as process:
        wait_until(lambda: selected(run_dir, 0), process, note_addresses)
        wait_until(lambda: trained(run_dir, 0) and selected(run_dir, 1), process)
        process.kill()
    assert not trained(run_dir, 1)
    assert not (run_dir / "student").exists()

    with started("run", config) as process:
        wait_until(lambda: selected(run_dir, 2), process)
        worker = training_workers(process)[0]
        epochs_at_kill = times(
            [*run_dir.glob("epochs/00/**/*.*"), *run_dir.glob("epochs/0[12]/*/part-*")]
        )
        before = {each.pid for each in training_workers(process)}
        worker.kill()
        wait_until(lambda: bool(training_pids(process) - before), process)
        output = ended(process)

    plain = make(run_dir=str(folder / "plain"), test=None)
    with in_process():
        ingest(plain, "corpus", SilentTracker())
        label(plain, ["corpus"], SilentTracker())
    return Killed(
        run_dir, [line.split()[0] for line in calls.read_text().splitlines()], labels_at_kill,
        logprobs_of(run_dir / "labels"), logprobs_of(folder / "plain/labels"), epochs_at_kill,
        output, addresses,
    )  # fmt: skip


def selected(run_dir: Path, epoch: int) -> bool:
    """Whether an epoch's rows are selected; its training comes after."""
    return (run_dir / f"epochs/{epoch:02d}/stats.json").exists()


def trained(run_dir: Path, epoch: int) -> bool:
    stats = run_dir / f"epochs/{epoch:02d}/stats.json"
    return stats.exists() and "training_loss" in json.loads(stats.read_text())


def times(paths: Iterable[Path]) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in paths}


def training_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    pids = training_pids(process)
    assert len(pids) == 2
    return [psutil.Process(pid) for pid in pids]


def training_pids(process: subprocess.Popen[str]) -> set[int]:
    """The training workers of a job."""
    found = set()
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if "RayTrainWorker" in " ".join(child.cmdline()):
                found.add(child.pid)
    return found


def test_labels_of_a_killed_run_are_those_of_an_undisturbed_one(killed: Killed) -> None:
    assert killed.labels.keys() == killed.undisturbed.keys() == set(range(7))
    for shard, logprobs in killed.undisturbed.items():
        assert np.array_equal(logprobs, killed.labels[shard])


def test_a_kill_in_mid_labelling_costs_the_shards_in_flight(killed: Killed) -> None:
    assert len(killed.labels_at_kill) == 2
    assert times(killed.labels_at_kill) == killed.labels_at_kill
    counts = Counter(killed.calls)
    assert len(counts) == 420 + len(CONTENT_FREE)
    assert sum(n > 1 for n in counts.values()) <= 60  # one shard of the one actor


def test_a_kill_in_mid_training_costs_its_epoch_only(killed: Killed) -> None:
    assert len(killed.epochs_at_kill) > 5 * 7
    assert times(killed.epochs_at_kill) == killed.epochs_at_kill
    assert {path.name for path in (killed.run_dir / "epochs").glob("0*")} == {"00", "01", "02"}
    assert "epoch 3/3 training" in killed.output  # by new workers, which the story waited for
    assert (killed.run_dir / "student/model.safetensors").exists()
    assert not list(killed.run_dir.rglob(".*.tmp"))


def test_a_local_ray_listens_on_this_machine_only(killed: Killed) -> None:
    assert killed.addresses
    assert killed.addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


WRONG: dict[str, tuple[dict[str, Any], list[str], int, str]] = {
    "misspelt setting": ({}, ["student.epoch=3"], 2, "did you mean 'epochs'"),
    "wrong column": ({}, ["corpus.text_column=body"], 1, "no column 'body'"),
    "no such model": ({}, ["teacher.engine=vllm", "teacher.model=./nothing"], 2, "does not exist"),
}


@pytest.mark.parametrize(("sections", "overrides", "status", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_told_in_a_line_and_fails(
    write_config: WriteConfig, sections: dict[str, Any], overrides: list[str], status: int,
    message: str,
) -> None:  # fmt: skip
    output = run_job("run", write_config(**sections), *overrides, status=status)
    what, todo = output.splitlines()
    assert message in what
    assert todo.startswith("  ")
    assert ("logs/run-" in todo) == (not any("epoch=" in text for text in overrides))


def test_settings_may_follow_options(write_config: WriteConfig) -> None:
    output = run_job("chaos", write_config(), "--kills", "2", "student.epoch=3", status=2)
    assert "did you mean 'epochs'" in output


def test_a_run_directory_in_use_is_refused_at_once(
    tmp_path: Path, write_config: WriteConfig
) -> None:
    config = write_config()
    with held(str(tmp_path / "run")):
        (tmp_path / "run/.x.tmp").write_text("of the job that is at work")
        output = run_job("run", config, status=1)
        assert f"BusyError: {tmp_path}/run is in use by process {os.getpid()} on" in output
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", ".x.tmp", "logs"]


def test_a_cluster_that_is_not_there_is_told_at_once(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.run(
        [sys.executable, "jobs/ingest.py", str(write_config())], cwd=ROOT, text=True,
        env=environment(RAY_ADDRESS=f"127.0.0.1:{free_port()}"), capture_output=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no Ray cluster answers there" in done.stdout


JOBS = (
    "run", "ingest", "label", "distill", "evaluate", "predict", "export", "plan", "prepare_demo",
    "benchmark", "compare",
)  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
def test_help_tells_what_a_job_does(
    job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", "--help"])
    with pytest.raises(SystemExit) as ended_:
        runpy.run_path(str(ROOT / f"jobs/{job}.py"), run_name="__main__")
    assert ended_.value.code == 0
    output = capsys.readouterr().out
    if job in ("benchmark", "compare"):
        assert {"benchmark": "teacher", "compare": "--policies"}[job] in output
        return
    assert "usage:" in output
    assert "Safe to run again" in output or "left alone" in output
    assert "Exit status: 0" in output or job == "prepare_demo"


def listening_addresses(root: int) -> set[str]:
    """Addresses on which a process or its descendants listen."""
    found = set()
    for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
        try:
            connections = process.net_connections(kind="inet")
        except psutil.Error:
            continue
        found |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    return found
