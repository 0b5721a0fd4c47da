"""The linear probe beside the student."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import llkd.student.probe
from llkd.distill import probe
from llkd.distill.policy import policy_of
from llkd.distill.selection import Selector
from llkd.results.shortfalls import shortfalls
from llkd.results.summary import show_summary
from llkd.store.arrays import matrix
from llkd.store.folder import Folder
from llkd.store.schema import METRICS, PROBS, RunLayout, shard_starts
from llkd.student.model import load_finished
from llkd.student.probe import PENALTIES, fit_probe
from llkd.student.scoring import Scorer, scoring_copy
from tests.conftest import MadeRun, MakeConfig
from tests.conftest import run as run_in_test

SIZE, CLASSES = 400, 3


def test_a_sample_is_as_large_as_its_limit_and_of_shards_drawn_at_random(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    selector = Selector(config, shard_starts([60] * 7), policy_of(config))
    monkeypatch.setattr("llkd.distill.selection.PROBE_ROWS", 150)

    def drawn() -> list[tuple[int, list[int], str]]:
        found = probe.sampled(selector, lambda shard: (np.arange(0, 60), f"of {shard}"))
        return [(shard, chosen.tolist(), read) for shard, chosen, read in found]

    assert [len(chosen) for _, chosen, _ in drawn()] == [60, 60, 30]
    assert len({shard for shard, _, _ in drawn()}) == 3
    assert [read for _, _, read in drawn()] == [f"of {shard}" for shard, _, _ in drawn()]
    last = drawn()[-1][1]
    assert last == sorted(set(last))
    assert last != list(range(30))
    assert drawn() == drawn()


def problem(noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features far from the origin, (N, D), and classes that a linear rule gives, (N,)."""
    random = np.random.default_rng(seed)
    features_nd = random.normal(size=(SIZE, 8)).astype(np.float32)
    rule_dc = np.random.default_rng(7).normal(size=(8, CLASSES))
    class_n = (features_nd @ rule_dc).argmax(axis=1)
    wrong = random.random(SIZE) < noise
    class_n[wrong] = random.integers(0, CLASSES, wrong.sum())
    return features_nd + 1.0, class_n


def test_a_probe_finds_a_linear_rule_and_is_calibrated_by_its_penalty() -> None:
    features_nd, class_n = problem(noise=0.0)
    fitted = fit_probe(features_nd, np.eye(CLASSES)[class_n], seed=0)
    fresh_nd, fresh_n = problem(noise=0.0, seed=1)
    probs_nc = fitted.probabilities(fresh_nd)
    assert (probs_nc.argmax(axis=1) == fresh_n).mean() > 0.95
    assert np.allclose(probs_nc.sum(axis=1), 1.0, atol=1e-5)
    noisy_nd, noisy_n = problem(noise=0.6)
    noisy = fit_probe(noisy_nd, np.eye(CLASSES)[noisy_n], seed=0)
    assert PENALTIES.index(noisy.penalty) < PENALTIES.index(fitted.penalty)
    assert noisy.probabilities(fresh_nd).max(axis=1).mean() < 0.8


def test_soft_labels_give_the_same_as_rows_in_their_proportions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(llkd.student.probe, "PENALTIES", PENALTIES[:1])
    features_nd, class_n = problem(noise=0.3)
    twice_nd, hard_n = np.repeat(features_nd, 2, axis=0), np.repeat(class_n, 2)
    hard_n[1::2] = (hard_n[1::2] + 1) % CLASSES
    hard = fit_probe(twice_nd, np.eye(CLASSES)[hard_n], seed=0)
    soft_nc = 0.5 * np.eye(CLASSES)[class_n] + 0.5 * np.eye(CLASSES)[(class_n + 1) % CLASSES]
    soft = fit_probe(features_nd, soft_nc, seed=0)
    assert np.allclose(hard.probabilities(features_nd), soft.probabilities(features_nd), atol=1e-3)


def test_a_head_without_bias_gets_none() -> None:
    features_nd, class_n = problem(noise=0.0)
    fitted = fit_probe(features_nd - 1.0, np.eye(CLASSES)[class_n], seed=0, bias=False)
    assert fitted.bias_c.tolist() == [0.0] * CLASSES
    assert (fitted.probabilities(features_nd - 1.0).argmax(axis=1) == class_n).mean() > 0.95


def test_a_single_row_of_each_class_is_enough_to_fit() -> None:
    fitted = fit_probe(np.eye(2, dtype=np.float32), np.eye(2), seed=0)
    assert fitted.penalty == PENALTIES[0]
    assert fitted.probabilities(np.eye(2, dtype=np.float32)).argmax(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("keep", "probe_f1", "student", "kept"),
    [
        ("best", 0.9, {"rows": 400, "accuracy": 0.8, "macro_f1": 0.8}, True),
        ("best", 0.83, {"rows": 400, "accuracy": 0.8, "macro_f1": 0.8}, False),
        ("best", 0.9, {"rows": 16, "accuracy": 0.8, "macro_f1": 0.8}, False),
        ("best", 0.9, None, False),
        ("last", 0.9, {"rows": 400, "accuracy": 0.5, "macro_f1": 0.5}, False),
        ("probe", 0.1, {"rows": 400, "accuracy": 0.8, "macro_f1": 0.8}, True),
        ("probe", 0.1, None, True),
    ],
)
def test_the_probe_is_kept_where_it_is_clearly_better(
    tmp_path: Path, make_config: Any, keep: str, probe_f1: float, student: Any, kept: bool
) -> None:
    config = make_config(student={"keep": keep})
    assert not probe.keeps_probe(config, student)  # nothing is fitted
    folder = Folder(RunLayout(config.run_dir).probe)
    folder.write_bytes(probe.HEAD, b"weights")
    figures = {"validation": {"macro_f1": probe_f1}, "crc32": folder.crc32(probe.HEAD)}
    folder.write_json(probe.RESULT, figures)
    assert probe.keeps_probe(config, student) == kept


def test_every_run_measures_its_probe(finished_run: MadeRun) -> None:
    metrics = Folder(finished_run.config().run_dir).read_json(METRICS)
    assert metrics["probe"]["test"]["rows"] == metrics["student"]["test"]["rows"]
    assert (
        "relabelled_fraction" not in metrics["selection"]
    )  # the probes disagree: its encoder is random
    held_out = metrics["student"]["held_out"][-1]
    assert metrics["probe"]["held_out"].keys() <= held_out.keys()
    assert metrics["probe"]["held_out"]["rows"] == held_out["rows"]


@pytest.mark.usefixtures("local_ray", "in_process", "no_report")
def test_a_student_that_has_hardly_learnt_gives_way_to_the_probe(
    tmp_path: Path, labelled_run: MadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The encoder is random, so its texts hardly differ.
    monkeypatch.setattr(llkd.student.probe, "PENALTIES", (1e-9,))
    student = {
        "learning_rate": 1e-9, "head_learning_rate": 1e-9, "epochs": 1, "validation_fraction": 0.3
    }  # fmt: skip
    config = labelled_run.copy(tmp_path / "run").config(student=student)
    run_in_test("distill", config)
    run_in_test("evaluate", config)
    metrics = Folder(config.run_dir).read_json(METRICS)
    assert metrics["probe"]["kept"]
    assert metrics["student"]["test"]["macro_f1"] == metrics["probe"]["test"]["macro_f1"]
    trained = metrics["student"]["held_out"][-1]["macro_f1"]
    assert metrics["probe"]["held_out"]["macro_f1"] > trained + 0.3


@pytest.mark.usefixtures("local_ray", "in_process", "no_report")
def test_a_probe_that_is_kept_is_a_student_like_any_other(
    tmp_path: Path, labelled_run: MadeRun
) -> None:
    run = labelled_run.copy(tmp_path / "run")
    config = run.config(student={"keep": "probe", "epochs": 1})
    run_in_test("distill", config)
    layout = RunLayout(config.run_dir)
    tokenizer, model = load_finished(layout.student)
    predicted = Folder(layout.probe_predictions)
    for shard in sorted(predicted.shards()):
        texts = Folder(layout.rows("test")).read_shard(shard)["text"].to_pylist()
        scorer = Scorer(tokenizer, scoring_copy(model, False), max_length=32)
        expected_nc = matrix(predicted.read_shard(shard, [PROBS])[PROBS])
        assert np.allclose(scorer.probabilities(texts), expected_nc, atol=1e-4)
    run_in_test("evaluate", config)
    assert "test" in Folder(config.run_dir).read_json(METRICS)["probe"]
    # Predictions that are lost or damaged leave the figures of the probe out.
    path = Path(layout.probe_predictions, "part-00000.parquet")
    path.write_bytes(path.read_bytes()[:-9])
    run_in_test("evaluate", config)
    assert "test" not in Folder(config.run_dir).read_json(METRICS)["probe"]
    # A head that is lost or altered is fitted again, to the same weights.
    folder = Folder(layout.probe)
    before = folder.read_bytes(probe.HEAD)
    for damaged in (b"", before[:-1]):
        folder.write_bytes(probe.HEAD, damaged)
        assert probe.read_probe(config) is None
        run_in_test("distill", config)
        assert folder.read_bytes(probe.HEAD) == before


def test_the_console_shows_the_probe_and_warns_where_it_is_better(finished_run: MadeRun) -> None:
    config = finished_run.config()
    metrics = Folder(config.run_dir).read_json(METRICS)

    def shown(macro_f1: float) -> str:
        metrics["probe"]["test"]["macro_f1"] = macro_f1
        console = Console(file=io.StringIO(), record=True, width=150)
        show_summary(config, metrics, console)
        return console.export_text()

    assert "linear probe" in shown(0.0)
    assert "below a linear probe" not in shown(0.0)
    assert "Warning   The student stays below a linear probe" in shown(1.0)


def test_a_student_below_its_teacher_or_its_probe_is_told() -> None:
    def metrics(teacher: float, probe: float, student: float) -> dict[str, Any]:
        return {
            "teacher": {"test": {"macro_f1": teacher}},
            "probe": {"test": {"macro_f1": probe}},
            "student": {"test": {"macro_f1": student}},
        }

    assert shortfalls(metrics(0.5, 0.5, 0.6)) == {}
    assert shortfalls(metrics(0.7, 0.5, 0.6)).keys() == {"teacher"}
    assert "student.keep: probe" in shortfalls(metrics(0.5, 0.7, 0.6))["probe"]
    assert shortfalls({"teacher": {}}) == {}
