"""Labels refined before the first epoch, by probes on a frozen student."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llkd.distill.refine
from llkd.core.calibration import Calibration
from llkd.core.refinement import FOLDS
from llkd.distill.holdout import make_validation
from llkd.distill.pseudo_labels import make_pseudo_labels, pseudo_labels
from llkd.distill.refine import (
    RESULT,
    WEIGHTS,
    read_refinement,
    refine,
    with_estimated_prior,
)
from llkd.distill.selection import Selector
from llkd.distill.state import prepare_epochs
from llkd.store.arrays import matrix
from llkd.store.folder import Folder
from llkd.store.schema import LABEL, LOGPROBS, ROW, RunLayout
from llkd.student.refiner import Refiner, fit_refiner
from tests.conftest import MadeRun, SilentTracker
from tests.distill.made import ROWS, noisy_teacher, of_run
from tests.in_process import in_process


def test_refinement_corrects_labels_that_contradict_those_of_similar_texts() -> None:
    features_nd, teacher_nc, gold_n = noisy_teacher()
    fold_n = np.arange(ROWS) % FOLDS
    refiner, _ = fit_refiner(features_nd, teacher_nc, fold_n, beta=1.0)
    refined_nc = refiner.refine(features_nd, teacher_nc, fold_n)
    before = (teacher_nc.argmax(axis=1) == gold_n).mean()
    after = (refined_nc.argmax(axis=1) == gold_n).mean()
    assert after > before + 0.07
    assert refined_nc.mean(axis=0) == pytest.approx(teacher_nc.mean(axis=0), rel=5e-3)
    kept = Refiner.from_arrays(refiner.arrays()).refine(features_nd, teacher_nc, fold_n)
    assert kept == pytest.approx(refined_nc, abs=1e-4)


@pytest.mark.parametrize("always", [True, False])
def test_features_that_say_nothing_change_no_label(always: bool) -> None:
    _, teacher_nc, _ = noisy_teacher()
    features_nd = np.random.default_rng(1).normal(size=(ROWS, 8)).astype(np.float32)
    fold_n = np.arange(ROWS) % FOLDS
    refiner, found = fit_refiner(features_nd, teacher_nc, fold_n, 1.0, always=always)
    refined_nc = refiner.refine(features_nd, teacher_nc, fold_n)
    assert np.array_equal(refined_nc.argmax(axis=1), teacher_nc.argmax(axis=1))
    assert found.agreement < 0.5
    assert (refiner.combination.beta == 1.0) is always
    assert np.allclose(refined_nc, teacher_nc) is not always


def test_label_frequencies_far_from_those_imposed_are_found_out() -> None:
    random = np.random.default_rng(0)
    gold_n = (random.random(ROWS) < 0.2).astype(int)
    features_nd = random.normal(size=(ROWS, 8)).astype(np.float32)
    features_nd[:, 0] += np.where(gold_n == 1, 2.0, -2.0)
    signal_n = np.where(gold_n == 1, 1.0, -1.0) + 0.8 * random.normal(size=ROWS)
    second_n = 1 / (1 + np.exp(-(signal_n - np.median(signal_n))))  # half of the rows of each label
    teacher_nc = np.stack([1 - second_n, second_n], axis=1)
    fold_n = np.arange(ROWS) % FOLDS

    def right(estimates_prior: bool) -> float:
        arguments = features_nd, teacher_nc, fold_n
        refiner, found = fit_refiner(*arguments, 1.0, estimates_prior=estimates_prior)
        assert (found.prior is not None) is estimates_prior
        refined_nc = refiner.refine(*arguments)
        if found.prior is not None:
            assert found.prior.accepted
            assert found.prior.estimate_c[1] == pytest.approx(0.2, abs=0.1)
            assert refined_nc.mean(axis=0) == pytest.approx(found.prior.prior_c, rel=5e-3)
            alone_nc = Calibration(found.prior_bias_c).apply(np.log(teacher_nc))
            assert alone_nc.mean(axis=0) == pytest.approx(found.prior.prior_c, rel=5e-3)
        return float((refined_nc.argmax(axis=1) == gold_n).mean())

    assert right(True) > right(False) + 0.1


def test_frequencies_as_imposed_stay() -> None:
    features_nd, teacher_nc, _ = noisy_teacher()
    arguments = features_nd, teacher_nc, np.arange(ROWS) % FOLDS
    refiner, found = fit_refiner(*arguments, 1.0, estimates_prior=True)
    assert found.prior is not None
    assert not found.prior.accepted
    without, _ = fit_refiner(*arguments, 1.0)
    assert np.array_equal(refiner.combination.bias_c, without.combination.bias_c)


def test_a_rows_own_label_does_not_count() -> None:
    features_nd, teacher_nc, _ = noisy_teacher()
    fold_n = np.arange(ROWS) % FOLDS
    other_nc = np.where((fold_n == 2)[:, None], np.roll(teacher_nc, 1, axis=1), teacher_nc)
    # After one round only: later rounds fit to labels that were refined with those of this fold.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llkd.student.refiner.ROUNDS", 1)
        patch.setattr("llkd.student.probe.PENALTIES", (1e-3,))
        found = [
            fit_refiner(features_nd, p_nc, fold_n, 1.0, always=True)[0]
            for p_nc in (teacher_nc, other_nc)
        ]
    mine, others = ([r.arrays()["weight"][fold] for r in found] for fold in (2, 1))
    assert np.array_equal(mine[0], mine[1])
    assert not np.array_equal(others[0], others[1])


@pytest.fixture
def prepared(tmp_path: Path, labelled_run: MadeRun) -> tuple[Selector, Calibration]:
    return of_run(labelled_run.copy(tmp_path / "run"), selection={"refine": True})


def made(selector: Selector, calibration: Calibration) -> list[bytes]:
    """The refined shards, byte by byte."""
    with in_process():
        refine(selector, calibration, SilentTracker())
    folder = Path(RunLayout(selector.config.run_dir).pseudo_labels)
    return [path.read_bytes() for path in sorted(folder.glob("part-*.parquet"))]


def accept_any_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("MIN_DIVERGENCE", "MIN_AGREEMENT"):
        monkeypatch.setattr(f"llkd.core.prior.{bound}", -10.0)


@pytest.mark.usefixtures("local_ray")
def test_shards_are_refined_out_of_fold_and_made_again_to_the_byte(
    prepared: tuple[Selector, Calibration],
) -> None:
    selector, calibration = prepared
    layout = RunLayout(selector.config.run_dir)
    before = made(selector, calibration)
    assert len(before) == selector.shards
    stored = Folder(layout.refinement).read_bytes(WEIGHTS)
    Path(layout.pseudo_labels, "part-00001.parquet").unlink()
    Path(layout.refinement, RESULT).write_text("{")  # damaged: fitted again
    assert made(selector, calibration) == before
    assert Folder(layout.refinement).read_bytes(WEIGHTS) == stored


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("sample", [16384, 40])
def test_actors_write_the_same_labels(
    prepared: tuple[Selector, Calibration], monkeypatch: pytest.MonkeyPatch, sample: int
) -> None:
    selector, calibration = prepared
    layout = RunLayout(selector.config.run_dir)
    made(selector, calibration)
    folder = Folder(layout.pseudo_labels)
    here = [folder.read_shard(shard) for shard in range(selector.shards)]
    folder.delete()
    Folder(layout.refinement).delete()
    monkeypatch.setattr(llkd.distill.refine, "alone_on_cpus", lambda: False)
    # In this process only: a corpus larger than the sample, whose other shards a second pool writes.
    monkeypatch.setattr(llkd.distill.refine, "PROBE_ROWS", sample)
    refine(selector, calibration, SilentTracker())
    for shard, table in enumerate(here):
        again = folder.read_shard(shard)
        assert again["row"].equals(table["row"])
        assert again["label"].equals(table["label"])
        assert np.allclose(again["confidence"], table["confidence"], atol=1e-4)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    "selection",
    [{"refine": False}, {"beta": 0.0}, {"policy": "all"}, {"policy": "random", "refine": None}],
)
def test_a_baseline_keeps_the_teachers_labels(
    tmp_path: Path, labelled_run: MadeRun, selection: dict[str, Any]
) -> None:
    selector, calibration = of_run(labelled_run.copy(tmp_path / "run"), selection=selection)
    assert made(selector, calibration) == []
    with in_process():
        make_pseudo_labels(selector.config, selector.shards, calibration, False)
    layout = RunLayout(selector.config.run_dir)
    logprobs = Folder(layout.labels("corpus")).read_shard(0, [LOGPROBS])[LOGPROBS]
    label_n = Folder(layout.pseudo_labels).read_shard(0)["label"].to_numpy()
    assert np.array_equal(label_n, calibration.apply(matrix(logprobs)).argmax(axis=1))


@pytest.mark.usefixtures("local_ray")
def test_probes_that_disagree_with_confident_labels_leave_them(
    tmp_path: Path, labelled_run: MadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept_any_estimate(monkeypatch)  # not used without refinement
    selector, calibration = of_run(labelled_run.copy(tmp_path / "run"))  # its encoder is random
    tracker = SilentTracker()
    with in_process():
        refine(selector, calibration, tracker)
    found = read_refinement(selector.config)
    assert found is not None
    assert not found["refines"]
    assert not found["prior"]["used"]
    assert found["agreement"] < found["confidence"]
    [note] = [arguments[0] for name, arguments in tracker.calls if name == "note"]
    assert note.startswith("labels are not refined: on the rows with the highest confidence")
    layout = RunLayout(selector.config.run_dir)
    for shard in range(selector.shards):
        logprobs = Folder(layout.labels("corpus")).read_shard(shard, [LOGPROBS])[LOGPROBS]
        probs_nc = calibration.apply(matrix(logprobs))
        table = Folder(layout.pseudo_labels).read_shard(shard)
        assert np.array_equal(table[LABEL].to_numpy(), probs_nc.argmax(axis=1))
        assert np.allclose(table["confidence"].to_numpy(), probs_nc.max(axis=1), atol=1e-4)


@pytest.mark.usefixtures("local_ray")
def test_estimated_frequencies_are_told_stored_and_used_for_rows_held_out(
    tmp_path: Path, labelled_run: MadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept_any_estimate(monkeypatch)
    skewed_c = np.array([0.9, 0.05, 0.05])
    monkeypatch.setattr("llkd.core.prior.most_likely_prior", lambda *_: skewed_c)
    sections: dict[str, Any] = {
        "selection": {"refine": True}, "student": {"validation_fraction": 0.5}
    }  # fmt: skip
    selector, calibration = of_run(labelled_run.copy(tmp_path / "run"), **sections)
    config, tracker = selector.config, SilentTracker()
    assert with_estimated_prior(config, calibration) is calibration
    with in_process():
        prepare_epochs(selector, calibration, tracker)
    found = read_refinement(config)
    assert found is not None
    assert found["prior"]["used"]
    notes = [arguments[0] for name, arguments in tracker.calls if name == "note"]
    first = max(found["prior"]["imposed"], key=found["prior"]["imposed"].get)
    assert notes[0].startswith(f"estimated label frequencies in use: {first} ")
    shifted = with_estimated_prior(config, calibration)
    folder = Folder(RunLayout(config.run_dir).labels("corpus"))
    logprobs = [folder.read_shard(n, [LOGPROBS])[LOGPROBS] for n in range(selector.shards)]
    mean_c = shifted.apply(np.concatenate([matrix(part) for part in logprobs])).mean(axis=0)
    assert mean_c == pytest.approx(list(found["prior"]["imposed"].values()), abs=0.01)
    assert mean_c[0] > 0.5
    for shard in range(selector.shards):
        table = Folder(RunLayout(config.run_dir).validation).read_shard(shard, [ROW, LABEL])
        row_n = folder.read_shard(shard, [ROW])[ROW].to_numpy()
        label_n = shifted.apply(matrix(logprobs[shard])).argmax(axis=1)
        held_n = np.isin(row_n, table[ROW].to_numpy())
        assert np.array_equal(table[LABEL].to_numpy(), label_n[held_n])
    warm = replace(calibration, temperature=2.0)
    expected_nc = warm.apply(matrix(logprobs[0])) * np.exp(-np.array(found["prior"]["bias"]))
    expected_nc /= expected_nc.sum(axis=1, keepdims=True)
    assert with_estimated_prior(config, warm).apply(matrix(logprobs[0])) == pytest.approx(
        expected_nc
    )


@pytest.mark.usefixtures("local_ray")
def test_a_handful_of_rows_is_not_refined(
    prepared: tuple[Selector, Calibration], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llkd.distill.refine, "SMALLEST_SAMPLE", 10_000)
    selector, calibration = prepared
    assert made(selector, calibration) == []
    assert read_refinement(selector.config) is None


@pytest.mark.usefixtures("local_ray")
def test_rows_held_out_have_the_teachers_labels(tmp_path: Path, labelled_run: MadeRun) -> None:
    student = {"validation_fraction": 0.5}
    selector, calibration = of_run(labelled_run.copy(tmp_path / "run"), student=student)
    layout = RunLayout(selector.config.run_dir)
    for shard in range(selector.shards):  # as refinement could leave them: every label another
        logprobs = Folder(layout.labels("corpus")).read_shard(shard, [ROW, LOGPROBS])
        probs_nc = np.roll(calibration.apply(matrix(logprobs[LOGPROBS])), 1, axis=1)
        table = pseudo_labels(logprobs[ROW], probs_nc, False)
        Folder(layout.pseudo_labels).write_shard(shard, table)
    with in_process():
        make_validation(selector, calibration)
    held = 0
    for shard in range(selector.shards):
        logprobs = Folder(layout.labels("corpus")).read_shard(shard, [ROW, LOGPROBS])
        label_n = calibration.apply(matrix(logprobs[LOGPROBS])).argmax(axis=1)
        held_n = selector.held(shard, logprobs[ROW].to_numpy())
        kept = Folder(layout.validation).read_shard(shard, [LABEL])[LABEL].to_numpy()
        assert np.array_equal(kept, label_n[held_n])
        held += held_n.sum()
    assert held > 50
