"""The trial of the policies on the frozen student, and the choice by rows labelled by hand."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from llkd.config.load import load_config
from llkd.config.run import RunConfig
from llkd.core.refinement import FOLDS
from llkd.distill.policy import policy_of, rivals_of
from llkd.distill.policy_choice import CANDIDATES, TRIAL, chosen_policy, read_trial
from llkd.distill.trial import MeasuredRows, TrialRows, choice, try_policies
from llkd.errors import ConfigError
from llkd.pipeline import run_all
from llkd.results.report import write_report
from llkd.store.folder import Folder
from llkd.store.schema import METRICS, RunLayout
from llkd.student.combination import Combination
from llkd.student.refiner import Diagnostics, GoldRows, Refiner
from llkd.teacher.gold import read_gold
from tests.conftest import MadeRun, MakeConfig
from tests.distill.made import CLASSES, ROWS

GOLD = np.arange(ROWS) % 3 == 0


def unrefined(*_: np.ndarray, **__: Any) -> tuple[Refiner, Diagnostics]:
    """In place of `fit_refiner`: the teacher's labels stay."""
    combination = Combination(1.0, 0.0, np.zeros(CLASSES))
    return Refiner([], combination), Diagnostics(1.0, 1.0, None, np.zeros(CLASSES))


def confidently_wrong() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features, distributions of a teacher, gold): where the first feature is high, the teacher is
    surest, and always wrong."""
    random = np.random.default_rng(0)
    features_nd = random.normal(size=(ROWS, 6)).astype(np.float32)
    gold_n = (features_nd[:, 1:] @ random.normal(size=(5, CLASSES))).argmax(axis=1)
    fooled_n = features_nd[:, 0] > 0.5
    said_n = np.where(fooled_n, (gold_n + 1) % CLASSES, gold_n)
    sure_n = np.where(fooled_n, 0.95, 0.6)[:, None]
    teacher_nc = (1 - sure_n) / (CLASSES - 1) + (sure_n - (1 - sure_n) / (CLASSES - 1)) * np.eye(
        CLASSES
    )[said_n]
    return features_nd, teacher_nc, gold_n


def tried(config: RunConfig, label_n: np.ndarray, gold: bool = True) -> dict[str, Any] | None:
    features_nd, teacher_nc, _ = confidently_wrong()
    fold_n, places_n = np.arange(ROWS) % FOLDS, np.full(ROWS, -1)
    rows = None
    if gold:
        places_n[GOLD] = np.arange(GOLD.sum())
        rows = GoldRows(*(x[GOLD] for x in (features_nd, teacher_nc, fold_n, label_n)))
    of_corpus = TrialRows(features_nd, teacher_nc, fold_n, places_n)
    return try_policies(config, rivals_of(config), of_corpus, rows, None, unrefined)


@pytest.fixture
def config(make_config: MakeConfig) -> RunConfig:
    """Whose gold rows judge and are not trained on."""
    return make_config(gold={"path": "hand.csv", "train": False}, selection={"policy": "auto"})


def test_gold_rows_choose_a_policy_that_does_not_trust_a_wrong_confidence(
    config: RunConfig,
) -> None:
    found = tried(config, confidently_wrong()[2])
    assert found is not None
    policies = found["policies"]
    assert set(policies) == set(CANDIDATES)
    assert found["gold_rows"] == GOLD.sum()
    assert policies["all"]["gold_right"] > policies["llkd"]["gold_right"] + 10
    best = max(CANDIDATES, key=lambda name: policies[name]["gold_right"])
    assert policies[found["chosen"]]["gold_right"] == policies[best]["gold_right"]
    assert 0.8 < policies["all"]["row_visits_fraction"] < 0.9  # all but the half that judges
    assert policies["llkd"]["row_visits_fraction"] < 0.5


@pytest.mark.parametrize("train", [True, False])
def test_a_gold_row_is_not_judged_by_what_was_trained_on_it(
    make_config: MakeConfig, train: bool
) -> None:
    config = make_config(gold={"path": "hand.csv", "train": train})
    lies_n = np.random.default_rng(1).integers(0, CLASSES, ROWS)
    found = tried(config, lies_n)
    assert found is not None
    for name in CANDIDATES:
        share = found["policies"][name]["gold_right"] / GOLD.sum()
        assert share == pytest.approx(1 / CLASSES, abs=0.12), name


@pytest.mark.parametrize(
    ("gained", "lost", "chosen"), [(1, 0, "llkd"), (5, 4, "llkd"), (9, 2, "all")]
)
def test_without_a_clear_difference_the_default_stays(gained: int, lost: int, chosen: str) -> None:
    default_m = np.arange(30) >= 15
    right_m = default_m.copy()
    right_m[:gained], right_m[30 - lost :] = True, False
    assert choice({"llkd": default_m, "all": right_m, "random": ~right_m & default_m}) == chosen


def test_a_test_set_is_reported_and_chooses_nothing(config: RunConfig) -> None:
    features_nd, teacher_nc, gold_n = confidently_wrong()
    rows = TrialRows(features_nd, teacher_nc, np.arange(ROWS) % FOLDS, np.full(ROWS, -1))
    found = try_policies(
        config, rivals_of(config), rows, None, MeasuredRows(features_nd, gold_n), unrefined
    )
    assert found is not None
    assert found["chosen"] == "llkd"
    policies = found["policies"]
    assert policies["all"]["test"]["accuracy"] > policies["llkd"]["test"]["accuracy"]
    assert "gold_right" not in policies["all"]
    assert tried(config, gold_n, gold=False) is None


def test_auto_excludes_labels_that_are_not_refined(make_config: MakeConfig) -> None:
    for setting in ({"refine": False}, {"beta": 0.0}, {"trial": False}):
        with pytest.raises(ConfigError, match="policy auto"):
            make_config(selection={"policy": "auto", **setting})


@pytest.mark.usefixtures("in_process")
def test_a_run_follows_the_choice_and_reports_it(tmp_path: Path, labelled_run: MadeRun) -> None:
    run, file = labelled_run.copy(tmp_path / "run"), tmp_path / "hand.csv"
    layout = RunLayout(run.config().run_dir)
    texts = Folder(layout.rows("corpus")).read_shard(0)["text"].to_pylist()[:12]
    names = run.config().task.label_names
    lines = [f"{json.dumps(text)},{names[place % 3]}" for place, text in enumerate(texts)]
    file.write_text("text,label\n" + "\n".join(lines) + "\n")
    gold = {"path": str(file), "judge": 0.0}
    config = run.config(gold=gold, selection={"policy": "auto"})
    assert type(policy_of(config)) is type(policy_of(run.config()))  # before the trial: the default
    trial = {
        "chosen": "random", "gold_rows": 12, "rows": 400, "seconds": 1.0,
        "policies": {
            name: {"row_visits_fraction": 0.2, "gold_right": 6 + (name == "random")} for name in CANDIDATES
        },
    }  # fmt: skip
    Folder(layout.refinement).write_json(TRIAL, trial)
    assert chosen_policy(config) == "random"
    console = Console(file=io.StringIO(), width=200)
    run_all(config, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert (
        "policy: random; its trial has 7 of 12 rows labelled by hand right, that of llkd 6"
        in printed
    )
    assert "Training, policy random" in printed
    metrics = Folder(layout.root).read_json(METRICS)
    assert metrics["policies"] == trial["policies"]
    assert metrics["selection"]["row_visits_fraction"] == pytest.approx(0.25, abs=0.05)
    write_report(config)
    report = (Path(layout.root) / "report.html").read_text()
    assert "What each policy would have done" in report
    assert "Policy random." in report
    # the same command again finds the same policy, and the real trial judges by the same rows
    assert load_config(f"{layout.root}/run.yaml").selection.policy == "auto"
    Folder(layout.epochs).delete()
    run_all(config, console)
    found = read_trial(config)
    assert found is not None
    known = read_gold(config)
    assert known is not None
    assert found["gold_rows"] == len(known.texts) > 8
    assert "test" in found["policies"]["all"]
