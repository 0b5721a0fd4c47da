"""Figures of a corpus from few rows labelled by hand, and their intervals."""

import numpy as np
import pytest

from llkd.core.inference import Answers, estimate, figures_of, student_t
from llkd.core.metrics import evaluate
from llkd.core.sampling import disagreement, draw_rows

ROWS, CLASSES = 1500, 4


def made() -> tuple[Answers, np.ndarray, np.ndarray]:
    """(answers of a student and of a worse teacher to a corpus, its gold, sizes to draw by)."""
    random = np.random.default_rng(0)
    gold_n = random.choice(CLASSES, ROWS, p=[0.5, 0.3, 0.15, 0.05])
    logits_nc = random.normal(size=(ROWS, CLASSES)) + 2.5 * np.eye(CLASSES)[gold_n]
    student_nc = np.exp(logits_nc) / np.exp(logits_nc).sum(axis=1, keepdims=True)
    noisy_nc = logits_nc + 1.5 * random.normal(size=(ROWS, CLASSES))
    teacher_nc = np.exp(noisy_nc) / np.exp(noisy_nc).sum(axis=1, keepdims=True)
    said_sn = np.stack([student_nc.argmax(axis=1), teacher_nc.argmax(axis=1)])
    return Answers(said_sn, student_nc), gold_n, disagreement(student_nc, teacher_nc)


def of_rows(answers: Answers, index: np.ndarray) -> Answers:
    return Answers(answers.said_sn[:, index], answers.model_nc[index])


def test_the_figures_are_those_of_the_confusion_matrix() -> None:
    answers, gold_n, _ = made()
    said_n = answers.said_sn[1]
    joint_cc = np.zeros((CLASSES, CLASSES))
    np.add.at(joint_cc, (said_n, gold_n), 1 / ROWS)
    figures, f1_bc = figures_of(joint_cc[None])
    known = evaluate(np.eye(CLASSES)[said_n], gold_n)
    assert figures["accuracy"][0] == pytest.approx(known.accuracy)
    assert figures["macro_f1"][0] == pytest.approx(known.macro_f1)
    assert f1_bc[0] == pytest.approx(known.per_class["f1"])
    chance = sum((said_n == c).mean() * (gold_n == c).mean() for c in range(CLASSES))
    assert figures["kappa"][0] == pytest.approx((known.accuracy - chance) / (1 - chance))


def test_intervals_hold_the_truth_and_are_narrower_than_gold_alone() -> None:
    answers, gold_n, size_n = made()
    every = np.arange(ROWS)
    whole = estimate(answers, gold_n, np.ones(ROWS), answers)
    held: dict[str, list[bool]] = {}
    widths, alone, errors = [], [], []
    for seed in range(200):
        random = np.random.default_rng(seed)
        drawn = draw_rows(ROWS, 100, size_n, every, random)
        index = drawn.index_k
        found = estimate(of_rows(answers, index), gold_n[index], drawn.probability_k, answers, seed)
        for name in ("accuracy", "macro_f1", "kappa"):
            true, one = whole.figures_s[0][name].value, found.figures_s[0][name]
            held.setdefault(name, []).append(one.low <= true <= one.high)
        true = whole.first_less_last["accuracy"].value
        difference = found.first_less_last["accuracy"]
        held.setdefault("difference", []).append(difference.low <= true <= difference.high)
        accuracy = found.figures_s[0]["accuracy"]
        widths.append(accuracy.high - accuracy.low)
        errors.append(accuracy.value - whole.figures_s[0]["accuracy"].value)
        right = (answers.said_sn[0] == gold_n)[random.choice(ROWS, 100, replace=False)].mean()
        alone.append(2 * 1.96 * np.sqrt(right * (1 - right) / 100))
    for name, hits in held.items():
        assert 0.90 <= np.mean(hits) <= 0.995, name
    assert np.mean(widths) < 0.95 * np.mean(alone)
    assert np.mean(errors) == pytest.approx(0.0, abs=0.01)


def test_a_wrong_model_costs_width_and_no_truth() -> None:
    answers, gold_n, _ = made()
    wrong_nc = np.roll(answers.model_nc, 1, axis=1)
    wrong = Answers(answers.said_sn, wrong_nc)
    true, hits = (answers.said_sn[0] == gold_n).mean(), []
    for seed in range(100):
        index = np.random.default_rng(seed).choice(ROWS, 100, replace=False)
        found = estimate(of_rows(wrong, index), gold_n[index], np.ones(100), wrong, seed)
        one = found.figures_s[0]["accuracy"]
        hits.append(one.low <= true <= one.high)
    assert np.mean(hits) > 0.88


@pytest.mark.parametrize("right", [True, False])
def test_rows_that_are_all_right_do_not_prove_that_all_others_are(right: bool) -> None:
    answers, _, _ = made()
    index = np.arange(30)
    gold_m = (answers.said_sn[0][index] + (not right)) % CLASSES
    found = estimate(of_rows(answers, index), gold_m, np.ones(30), answers)
    one = found.figures_s[0]["accuracy"]
    assert one.value > 0.9 if right else one.value < 0.1
    share = (30 + 2) / (30 + 4)
    assert one.error == pytest.approx(np.sqrt(share * (1 - share) / 34), rel=0.01)
    by_label = sum(found.f1_sc[0][label].error ** 2 for label in range(CLASSES))
    assert found.figures_s[0]["macro_f1"].error > np.sqrt(0.5 * by_label) / CLASSES
    assert one.high <= 1.0


def test_quantiles_of_students_t() -> None:
    assert student_t(20) == pytest.approx(2.086, abs=0.002)
    assert student_t(1e6) == pytest.approx(1.960, abs=0.001)
