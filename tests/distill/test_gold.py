"""Rows labelled by hand: what is fitted to them, and how they are read, counted and trained on."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from llkd.config.run import RunConfig
from llkd.core.refinement import FOLDS, GOLD_PROB, with_gold
from llkd.distill.refine import read_refinement
from llkd.distill.stage import manifest_of as distill_manifest
from llkd.distill.state import prepare_epochs
from llkd.errors import DataError, FingerprintError
from llkd.ingest.stage import ingest
from llkd.pipeline import run_evaluate, run_ingest, run_label
from llkd.store.folder import Folder
from llkd.store.manifest import require_complete
from llkd.store.schema import RunLayout
from llkd.student.combination import Combination, fit_combination
from llkd.student.refiner import GoldRows, Refiner, fit_refiner
from llkd.teacher.gold import read_gold
from llkd.teacher.stage import label
from tests.conftest import MadeRun, MakeConfig, SilentTracker
from tests.distill.made import CLASSES, ROWS, noisy_teacher, of_run
from tests.in_process import in_process


def test_few_gold_rows_correct_a_bias_and_their_own_measure_is_honest() -> None:
    features_nd, teacher_nc, gold_n = noisy_teacher()
    biased_nc = teacher_nc * np.array([4.0, 1.0, 1.0])  # the teacher says class 0 too often
    biased_nc /= biased_nc.sum(axis=1, keepdims=True)
    fold_n, chosen_n = np.arange(ROWS) % FOLDS, np.arange(80)
    rows = GoldRows(*(x[chosen_n] for x in (features_nd, biased_nc, fold_n, gold_n)))
    arguments = features_nd, biased_nc, fold_n
    plain, without = fit_refiner(*arguments, 1.0, always=True)
    refiner, found = fit_refiner(*arguments, 1.0, always=True, gold=rows)
    others_n = np.setdiff1d(np.arange(ROWS), chosen_n)
    before, after = (
        (each.refine(*arguments).argmax(axis=1) == gold_n)[others_n].mean()
        for each in (plain, refiner)
    )
    assert after > before + 0.1
    assert without.gold_mc is None
    assert found.gold_mc is not None
    measured = (found.gold_mc.argmax(axis=1) == rows.label_m).mean()
    assert measured == pytest.approx(after, abs=0.1)
    kept = Refiner.from_arrays(refiner.arrays()).refine(*arguments)
    assert kept == pytest.approx(refiner.refine(*arguments), abs=1e-4)


def test_gold_rows_that_make_labels_worse_are_not_followed() -> None:
    features_nd, teacher_nc, gold_n = noisy_teacher()
    arguments = features_nd, teacher_nc, np.arange(ROWS) % FOLDS
    few = GoldRows(*(x[:40] for x in (*arguments, gold_n)))
    # a combination that turns every label into the next one, as if fitted to unlucky rows
    unlucky = Combination(0.1, 0.1, np.array([9.0, 0.0, 9.0]))
    plain, _ = fit_refiner(*arguments, 1.0, always=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llkd.student.refiner.fit_combination", lambda *_: unlucky)
        refiner, found = fit_refiner(*arguments, 1.0, always=True, gold=few)
    assert not found.gold_helps
    assert refiner.refine(*arguments) == pytest.approx(plain.refine(*arguments))
    assert found.gold_mc == pytest.approx(plain.refine(*(x[:40] for x in arguments)))
    assert fit_refiner(*arguments, 1.0, always=True, gold=few)[1].gold_helps


def test_a_gold_row_does_not_measure_what_was_fitted_to_it() -> None:
    features_nd, teacher_nc, gold_n = noisy_teacher()
    fold_n = np.arange(ROWS) % FOLDS
    chosen_n = np.arange(60)

    def measured(label_m: np.ndarray) -> np.ndarray:
        rows = GoldRows(features_nd[chosen_n], teacher_nc[chosen_n], fold_n[chosen_n], label_m)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "llkd.student.refiner.ROUNDS", 1
            )  # later probes learn from refined labels
            _, found = fit_refiner(features_nd, teacher_nc, fold_n, 1.0, always=True, gold=rows)
        assert found.gold_mc is not None
        return found.gold_mc

    in_fold = fold_n[chosen_n] == 2
    told = measured(gold_n[chosen_n])
    lied = measured(np.where(in_fold, (gold_n[chosen_n] + 1) % CLASSES, gold_n[chosen_n]))
    assert np.array_equal(told[in_fold], lied[in_fold])
    assert not np.allclose(told[~in_fold], lied[~in_fold], atol=1e-3)


def test_without_gold_rows_the_combination_stays_and_many_rows_find_it() -> None:
    random = np.random.default_rng(0)
    teacher_nc, student_nc = (random.dirichlet(np.ones(CLASSES), ROWS) for _ in range(2))
    start = Combination(1.0, 0.5, np.array([0.1, -0.1, 0.0]))
    none = fit_combination(teacher_nc[:0], student_nc[:0], np.zeros(0), start)
    assert (none.alpha, none.beta) == pytest.approx((1.0, 0.5))
    assert none.bias_c == pytest.approx(start.bias_c)
    true = Combination(0.6, 1.4, np.array([0.8, -0.8, 0.0]))
    few = fit_combination(teacher_nc[:2], student_nc[:2], teacher_nc[:2].argmax(axis=1), start)
    assert 1.0 < few.alpha < 2.0  # no penalty: without bound
    assert np.abs(few.bias_c - start.bias_c).max() < 1.0
    drawn = (true.apply(teacher_nc, student_nc).cumsum(axis=1) < random.random((ROWS, 1))).sum(
        axis=1
    )
    found = fit_combination(teacher_nc, student_nc, drawn, start)
    assert (found.alpha, found.beta) == pytest.approx((0.6, 1.4), rel=0.3)
    assert found.bias_c - found.bias_c.mean() == pytest.approx(true.bias_c, abs=0.3)
    fixed = fit_combination(teacher_nc, student_nc, drawn, replace(start, beta=0.0))
    assert fixed.beta == 0.0


def test_labels_given_by_hand_are_certain() -> None:
    found = with_gold(np.full((3, 4), 0.25), np.array([-1, 2, -1]))
    assert found.sum(axis=1) == pytest.approx(1.0)
    assert found[1].argmax() == 2
    assert found[1, 2] == GOLD_PROB
    assert found[0] == pytest.approx(0.25)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("policy", ["llkd", "all"])
def test_rows_labelled_by_hand_are_read_counted_and_trained_on(
    tmp_path: Path, labelled_run: MadeRun, policy: str, train: bool
) -> None:
    run = labelled_run.copy(tmp_path / "run")
    texts = Folder(RunLayout(run.config().run_dir).rows("corpus")).read_shard(0)["text"].to_pylist()
    texts = list(dict.fromkeys(texts))[:8]
    names = run.config().task.label_names
    lines = [f"{json.dumps(text)},{names[number % 3]}" for number, text in enumerate(texts[:6])]
    lines += [f"{json.dumps(texts[0])},{names[1]}", f"{json.dumps(texts[6])},"]
    file = tmp_path / "hand.csv"
    file.write_text("text,label\n" + "\n".join(lines) + "\n")
    sections = {
        "gold": {"path": str(file), "train": train, "judge": 0.0},
        "selection": {"policy": policy},
    }
    config, tracker = run.config(**sections), SilentTracker()
    with in_process():
        ingest(config, "gold", tracker)
        label(config, ["gold"], tracker)
    gold = read_gold(config)
    assert gold is not None
    assert (len(gold.texts), gold.conflicting) == (5, 1)
    assert gold.of([texts[0], texts[1], texts[6]]).tolist() == [-1, 1, -1]
    selector, calibration = of_run(run, **sections)
    with in_process():
        prepare_epochs(selector, calibration, tracker)
    table = Folder(RunLayout(config.run_dir).pseudo_labels).read_shard(0)
    rows = Folder(RunLayout(config.run_dir).rows("corpus")).read_shard(0)["text"]
    known_n = gold.of(rows.take(table["row"]).to_pylist())
    right_n = table["label"].to_numpy()[known_n >= 0] == known_n[known_n >= 0]
    certain_n = np.isclose(table["confidence"].to_numpy()[known_n >= 0], GOLD_PROB)
    assert bool(right_n.all() and certain_n.all()) is train
    found = read_refinement(config)
    assert (found is not None) is (policy == "llkd")
    if found is not None:
        assert found["gold"]["rows"] == 5
        notes = [arguments[0] for name, arguments in tracker.calls if name == "note"]
        assert any(note.startswith("of 5 rows labelled by hand") for note in notes)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ("a goal,sport\na goal,tech\na chip,tech\n", "their labels differ: 1"),
        ("a goal,\n", "no row has a label"),
        ("a goal,sport\na chip,tech\n", "the corpus does not have, which are not trained on: 2"),
    ],
)
def test_what_of_the_gold_file_is_not_used_is_told(
    tmp_path: Path, labelled_run: MadeRun, rows: str, line: str
) -> None:
    run, file = labelled_run.copy(tmp_path / "run"), tmp_path / "hand.csv"
    file.write_text(f"text,label\n{rows}")
    config, console = run.config(gold={"path": str(file)}), Console(file=io.StringIO(), width=200)
    run_ingest(config, console)
    run_label(config, console)
    assert line in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("in_process")
def test_added_labels_are_not_passed_over(tmp_path: Path, labelled_run: MadeRun) -> None:
    run, file = labelled_run.copy(tmp_path / "run"), tmp_path / "hand.csv"
    file.write_text("text,label\na goal,sport\na chip,\n")
    config, console = run.config(gold={"path": str(file)}), Console(file=io.StringIO())
    run_ingest(config, console)
    before = distill_manifest(config, require_complete(corpus_labels(config), "label"))
    file.write_text("text,label\na goal,sport\na chip,tech\n")
    with pytest.raises(FingerprintError, match="gold.rows"):
        run_evaluate(config, console)
    after = distill_manifest(config, require_complete(corpus_labels(config), "label"))
    assert before.fingerprint != after.fingerprint


@pytest.mark.usefixtures("in_process")
def test_misspelt_labels_are_counted_and_named(tmp_path: Path, labelled_run: MadeRun) -> None:
    run, file = labelled_run.copy(tmp_path / "run"), tmp_path / "hand.csv"
    wrong = "".join(f"row {place},sprot\n" for place in range(6))
    file.write_text(f"text,label\na goal,sport\n{wrong}a chip,\na deal,Unknown\n")
    with pytest.raises(DataError) as error:
        run_ingest(run.config(gold={"path": str(file)}), Console(file=io.StringIO()))
    assert error.value.what.startswith("7 labels of gold are not in task.labels")
    assert "hand.csv, row 2: 'sprot' ('sport'?)" in error.value.what
    assert "and 2 more" in error.value.what
    assert "or leave them empty" in error.value.remedy


def corpus_labels(config: RunConfig) -> Folder:
    return Folder(RunLayout(config.run_dir).labels("corpus"))


def test_validation_is_another_name_of_gold(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(validation={"path": str(tmp_path / "hand.csv")})
    assert config.gold is not None
    assert config.gold.path == str(tmp_path / "hand.csv")
    assert "gold" in config.datasets
