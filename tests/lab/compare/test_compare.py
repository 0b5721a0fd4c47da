"""Comparison of policies: on a frozen student, by fine-tuning, and as a job."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from llkd.config.run import RunConfig
from llkd.distill.epoch_stats import best_epoch
from llkd.distill.frozen_run import Head
from llkd.errors import ConfigError, IncompleteError
from llkd.lab.compare.compare import (
    is_labelled,
    require_comparable,
    run_cheap,
    run_fine_tuned,
    variants,
)
from llkd.lab.compare.linear_probe import CheapRun, read_problem
from llkd.lab.compare.plots import PLOTS
from llkd.lab.compare.results import PROBE
from llkd.store.folder import Folder
from llkd.store.schema import METRICS
from llkd.teacher.calibrate import calibrate
from tests.conftest import ROOT, MadeRun, MakeConfig
from tests.helpers import environment, written

CHEAP = ["llkd", "refined", "all", "small_loss", "confident_learning", "freematch", "softmatch"]


@pytest.fixture(scope="module")
def labelled(
    labelled_run: MadeRun, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunConfig, MakeConfig]:
    """A labelled run; tests may only add comparisons to it."""
    copy = labelled_run.copy(tmp_path_factory.mktemp("labelled") / "run")
    config = copy.config(student={"loss": "mix"})
    calibrate(config)
    return config, copy.make


def copied(config: RunConfig, run_dir: Path) -> RunConfig:
    """The config of a copy of a run."""
    shutil.copytree(config.run_dir, run_dir)
    return config.model_copy(update={"run_dir": str(run_dir)})


def silent() -> Console:
    return Console(file=io.StringIO())


def test_each_policy_and_seed_has_its_own_run(labelled: tuple[RunConfig, MakeConfig]) -> None:
    policies = ["all", "refined:selection.beta=0.5;student.epochs=3"]
    found = list(variants(labelled[0], policies, 2))
    assert [run.run_dir.rsplit("/compare/", 1)[1] for _, run in found] == [
        "all-0", "all-1", "refined-selection.beta=0.5-student.epochs=3-0",
        "refined-selection.beta=0.5-student.epochs=3-1",
    ]  # fmt: skip
    assert [run.seed for _, run in found] == [0, 1, 0, 1]
    what, run = found[3]
    assert what == policies[1]
    assert (run.selection.policy, run.selection.beta, run.student.epochs) == ("refined", 0.5, 3)


def test_cheap_runs_learn_and_are_reproducible(labelled: tuple[RunConfig, MakeConfig]) -> None:
    config, _ = labelled
    assert is_labelled(config)
    first = run_cheap(config, CHEAP, 2, silent())
    kept = sorted(Path(config.run_dir, "compare/embeddings").rglob("*.parquet"))
    assert len(kept) == 2  # of the corpus and of the test set
    written_at = [path.stat().st_mtime_ns for path in kept]
    trained = [run for run in first if run.policy != PROBE]
    assert run_cheap(config, CHEAP, 2, silent())[:-2] == trained  # read from the cache
    shutil.rmtree(Path(config.run_dir, "compare/cheap"))
    again = run_cheap(config, CHEAP, 2, silent())
    assert [replace(run, seconds=0.0) for run in again] == [replace(r, seconds=0.0) for r in first]
    assert [path.stat().st_mtime_ns for path in kept] == written_at
    assert len({run.macro_f1 for run in first}) > 3
    assert [(run.policy, run.seed) for run in first[-2:]] == [(PROBE, 0), (PROBE, 1)]
    assert all(run.macro_f1 > 0.6 for run in first)  # three topics, a mostly correct teacher
    for run in trained:
        assert 0 < run.row_visits_fraction <= run.unique_rows_fraction <= 1
        assert len(run.epochs) == 2
        assert run.reliability["confidence"][-1][1] > run.reliability["confidence"][0][1]
    of_all = [run for run in first if run.policy == "all"]
    assert {run.row_visits_fraction for run in of_all} == {1.0}


def test_gold_of_the_corpus_does_not_affect_training(
    labelled: tuple[RunConfig, MakeConfig],
) -> None:
    config, _ = labelled
    problem = read_problem(config)
    assert problem.gold_n is not None
    other = replace(problem, gold_n=1 - problem.gold_n)
    runs = [CheapRun(config, p).run() for p in (problem, other)]
    assert runs[0].macro_f1 == runs[1].macro_f1
    assert runs[0].reliability != runs[1].reliability


def test_a_cheap_run_keeps_the_best_epoch_on_the_validation_split(
    labelled: tuple[RunConfig, MakeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = labelled
    student = config.student.model_copy(update={"validation_fraction": 0.3})
    config, problem = config.model_copy(update={"student": student}), read_problem(config)
    run = CheapRun(config, problem).run()
    of_epoch = []
    for epoch in range(2):
        monkeypatch.setattr(
            "llkd.lab.compare.linear_probe.best_epoch", lambda _, epoch=epoch: epoch
        )
        of_epoch.append(CheapRun(config, problem).run().macro_f1)
    scores = [entry["validation"]["macro_f1"] for entry in run.epochs]
    assert of_epoch[0] != of_epoch[1]
    assert run.macro_f1 == of_epoch[scores.index(max(scores))]
    assert [entry["validation"]["rows"] for entry in run.epochs] == [
        run.epochs[0]["validation"]["rows"]
    ] * 2
    assert run.epochs[0]["validation"]["rows"] > 20


def test_the_best_epoch_is_the_first_of_the_highest_score() -> None:
    assert [best_epoch(scores) for scores in ([0.1, 0.3, 0.3], [0.5], [0.4, 0.2])] == [1, 0, 0]


def test_passes_with_dropout_are_averaged() -> None:
    head = Head(4, 8, 3, 0.5)
    features = np.ones((2, 4), dtype=np.float32)
    plain = head.probabilities(features)
    assert plain == pytest.approx(head.probabilities(features))
    mixed = head.probabilities(features, passes=4)
    assert mixed.sum(axis=1) == pytest.approx([1, 1])
    assert not np.allclose(mixed, plain)


def test_unsuitable_runs_are_refused(
    labelled: tuple[RunConfig, MakeConfig], tmp_path: Path
) -> None:
    _, make = labelled
    with pytest.raises(ConfigError, match="test.path"):
        require_comparable(make(test=None), ["all"])
    empty = make(run_dir=str(tmp_path / "empty"))
    assert not is_labelled(empty)
    with pytest.raises(ConfigError, match="selection.betta"):
        require_comparable(empty, ["refined:selection.betta=1"])
    with pytest.raises(IncompleteError):
        run_cheap(empty, ["all"], 1, silent())


@pytest.mark.usefixtures("in_process")
def test_fine_tuned_runs_share_rows_and_labels_and_resume(
    labelled: tuple[RunConfig, MakeConfig], tmp_path: Path
) -> None:
    config = copied(labelled[0], tmp_path / "run")
    first = run_fine_tuned(config, ["llkd", "random"], 1, silent())
    assert [(run.policy, run.seed, len(run.epochs)) for run in first] == [
        ("llkd", 0, 2), ("random", 0, 2), (PROBE, 0, 0),
    ]  # fmt: skip
    metrics = Folder(f"{config.run_dir}/compare/llkd-0").read_json(METRICS)
    assert first[-1].macro_f1 == metrics["probe"]["test"]["macro_f1"]
    assert set(first[0].reliability) == {"confidence", "uncertainty"}
    folder = Path(config.run_dir, "compare/llkd-0")
    assert (folder / "student/model.safetensors").exists()
    assert (folder / "report.html").exists()
    assert not (folder / "corpus").exists()
    assert not (folder / "labels").exists()
    students = sorted(Path(config.run_dir).rglob("model.safetensors"))
    written_at = [path.stat().st_mtime_ns for path in students]
    assert run_fine_tuned(config, ["llkd", "random"], 1, silent()) == first
    assert [path.stat().st_mtime_ns for path in students] == written_at


@pytest.mark.usefixtures("in_process")
def test_students_of_a_seed_share_the_first_scores(
    labelled: tuple[RunConfig, MakeConfig], tmp_path: Path
) -> None:
    config = copied(labelled[0], tmp_path / "run")
    policies = ["small_loss", "llkd", "llkd:selection.uncertainty=margin;student.epochs=1"]
    run_fine_tuned(config, policies, 1, silent())
    small_loss, llkd, margin = (
        [path.read_bytes() for path in sorted(folder.glob("epochs/00/uncertainty/part-*"))]
        for folder in (Path(run.run_dir) for _, run in variants(config, policies, 1))
    )
    assert llkd == small_loss  # including the distributions, which only that policy needs
    assert len(margin) == len(llkd)
    assert margin != llkd


def compare(*arguments: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "jobs/compare.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)


def test_the_job(labelled: tuple[RunConfig, MakeConfig], tmp_path: Path) -> None:
    other = copied(labelled[0], tmp_path / "other")
    paths = [written(tmp_path / "one.yaml", labelled[0]), written(tmp_path / "two.yaml", other)]
    done = compare(
        *paths, "--policies", "llkd,all", "--seeds", "2", "--cheap", "--json",
        tmp_path / "figures.json", "--plots", tmp_path / "plots", "student.epochs=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    found = [(entry["config"], entry["policy"], entry["seed"]) for entry in figures]
    assert found == [
        (name, policy, seed)
        for name in ("one", "two") for policy in ("llkd", "all", PROBE) for seed in (0, 1)
    ]  # fmt: skip
    for name in ("one", "two"):
        page = (tmp_path / "plots" / name / PLOTS).read_text()
        for title in ("Score", "Share of each label", "Thresholds on", "How often the teacher"):
            assert f"<h2>{title}" in page
    assert done.stdout.count("difference of macro-F1") == 2
    assert "gain" in done.stdout
    assert done.stdout.count("the teacher") == 3


@pytest.mark.parametrize(
    ("configs", "arguments", "message"),
    [(2, ["--cheap"], "its own run_dir"), (1, ["--policies", "none"], "none")],
)
def test_a_wrong_command_line_is_refused(
    labelled: tuple[RunConfig, MakeConfig], tmp_path: Path, configs: int, arguments: list[str],
    message: str,
) -> None:  # fmt: skip
    paths = [written(tmp_path / f"{number}.yaml", labelled[0]) for number in range(configs)]
    done = compare(*paths, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
