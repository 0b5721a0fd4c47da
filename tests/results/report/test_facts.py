"""Facts and sentences of a report: figures worked out by hand, unfinished and damaged runs."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llkd.config.run import RunConfig
from llkd.core.metrics import evaluate
from llkd.errors import ConfigError
from llkd.results.report import write_report
from llkd.results.report.evaluations import confusions, gap_reading
from llkd.results.report.facts import Facts, gather
from llkd.results.report.page import embedded, findings_of, render, sections_of
from llkd.results.report.passes import epochs_pass
from llkd.results.report.selection import left_out
from llkd.results.report.student import labels_section, needs, student_z
from llkd.results.report.teacher import confused_labels
from llkd.results.report.totals import Totals
from llkd.results.report.words import percent
from tests.results.report import made

NAMES = ["sport", "tech", "trade"]
GOLD = [np.array([0, 0, 0, 0, 1, 1]), np.array([1, 1, 2, 2, 2, 2])]
TEACHER = [np.array([0, 0, 1, 1, 1, 1]), np.array([1, 2, 2, 2, 2, 2])]
"""Takes 2 of the 4 sport rows for tech and 1 of the 4 tech rows for trade."""
STUDENT = [np.array([0, 0, 0, 0, 1, 1]), np.array([1, 2, 2, 2, 2, 1])]
"""Right on the rows that the teacher takes for tech; wrong with it on one tech row, and alone on one
trade row."""
UNSURE = [np.linspace(0.1, 0.6, 6), np.linspace(0.2, 0.7, 6)]
TEXTS = [[f"text {shard} {row}" for row in range(6)] for shard in range(2)]


def rows() -> made.Shards:
    return list(zip(TEXTS, GOLD, strict=True))


def config_of(run_dir: Path, **sections: Any) -> RunConfig:
    return made.a_config(
        run_dir, NAMES, **{"teacher": {"model": "t", "calibration": "none"}, **sections}
    )


def teacher_probs() -> list[np.ndarray]:
    return [made.answers(part, 0.8, 3) for part in TEACHER]


def labelled(config: RunConfig, probs: list[np.ndarray] | None = None) -> None:
    """Two shards of labelled corpus."""
    made.ingested(config, "corpus", rows())
    made.labelled(config, "corpus", teacher_probs() if probs is None else probs)


def finished(run_dir: Path, **sections: Any) -> RunConfig:
    """Two shards of corpus and test set, the same rows; two epochs."""
    config = config_of(run_dir, **sections)
    for dataset in ("corpus", "test"):
        if config.source(dataset) is not None:
            made.ingested(config, dataset, rows())
            made.labelled(config, dataset, teacher_probs())
    for epoch in range(2):
        made.trained(config, epoch, UNSURE)
    made.distilled(config, 2)
    if config.test is not None:
        made.tested(config, [made.answers(part, 0.9, 3) for part in STUDENT])
    return config


def trained(
    run_dir: Path,
    probs: list[np.ndarray] | None = None,
    uncertainty: list[np.ndarray] = UNSURE,
    epochs: int = 2,
    **sections: Any,
) -> Facts:
    """A labelled corpus and a few epochs, without a test set."""
    config = config_of(run_dir, test=None, **sections)
    labelled(config, probs)
    for epoch in range(epochs):
        made.trained(config, epoch, uncertainty)
    return gather(config)


def findings(facts: Facts) -> list[tuple[str, str]]:
    """(kind, text), the gravest first."""
    return [(finding.kind, finding.text) for _, finding in findings_of(sections_of(facts))]


def shown(facts: Facts) -> str:
    return render(facts).partition('<script type="application/json"')[0]


def test_figures_of_a_finished_run(tmp_path: Path) -> None:
    facts = gather(finished(tmp_path / "run"))
    assert facts.complete
    assert facts.errors == []
    for section in sections_of(facts):
        assert section.plots or section.tables or section.row_lists
        assert all(plot.reading and plot.title for plot in section.plots)
    assert facts.tested is not None
    assert facts.tested.teacher.accuracy == 9 / 12
    assert facts.tested.student.accuracy == 10 / 12
    # sport: both, both, student, student; tech: both 3, nobody 1; trade: both 3, teacher alone 1
    assert facts.tested.outcome_c4.tolist() == [[2, 2, 0, 0], [3, 0, 0, 1], [3, 0, 1, 0]]
    assert student_z(facts.tested.outcome_c4) == pytest.approx(1 / np.sqrt(3))
    assert confused_labels(facts) == (
        "The teacher most often takes “sport” for “tech”: on 50\u00a0% of the “sport” rows (2) of the "
        "test set; next “tech” for “trade”, 25\u00a0%."
    )
    assert labels_section(facts).lead.startswith(
        "Most on “tech”: its rows make up 50\u00a0% of the student's mistakes"
    )
    assert [(need.label, need.missed, need.teacher_right) for need in needs(facts.tested.outcome_c4)] == [
        (1, 1, 0.0), (2, 1, 1.0),
    ]  # fmt: skip
    assert [row.text for row in facts.rows["test_mistakes"]] == [
        "text 0 2", "text 0 3", "text 1 5",
    ]  # fmt: skip


def test_selected_rows_and_reasons_for_the_others(tmp_path: Path) -> None:
    sure = teacher_probs()
    sure[0][0] = [0.6, 0.2, 0.2]  # below the threshold
    facts = trained(
        tmp_path / "run", sure,
        selection={"thresholds": "fixed", "confidence_threshold": 0.7, "uncertainty_threshold": 0.5,
                   "class_floor": 0.0},
    )  # fmt: skip
    # selected, teacher unsure, student sure, other; the first epoch asks the teacher alone. In the
    # second rows 0.5 and 0.6 of the first shard, 0.5, 0.6 and 0.7 of the second are unsure enough.
    assert facts.epochs["why_ec4"].sum(axis=1).tolist() == [[11, 1, 0, 0], [5, 1, 6, 0]]
    assert facts.epochs["visits_ce"].tolist() == [[1, 1, 0], [0, 3, 2], [0, 2, 3]]
    assert facts.epochs["plane_e2gg"].sum(axis=(2, 3)).tolist() == [[1, 11], [7, 5]]
    assert [row.text for row in facts.rows["unsure"]] == ["text 0 0"]
    assert {row.text for row in facts.rows["useful"][:5]} == {
        "text 0 4", "text 0 5", "text 1 3", "text 1 4", "text 1 5",
    }  # fmt: skip
    assert left_out(facts).startswith(
        "8.3\u00a0% of the labelled rows were never selected in 2 epochs. In the last epoch, 8.3\u00a0% "
        "were left out because the teacher was not confident enough, and 50\u00a0% because the student "
        "was already certain."
    )


@pytest.mark.parametrize(
    ("sure", "reading"),
    [
        (0.9, "mean confidence is 40.0 points above its accuracy"),
        (0.3, "mean confidence is 20.0 points below its accuracy"),
    ],
)
def test_direction_of_the_confidence_gap(sure: float, reading: str) -> None:
    rest = (1 - sure) / 3
    probs_nc = np.array([[sure, rest, rest, rest]] * 2)
    assert gap_reading(evaluate(probs_nc, np.array([0, 1]))) == reading


def test_totals_are_independent_of_the_shards_and_survive_json(tmp_path: Path) -> None:
    config = finished(tmp_path / "run")
    stats = gather(config).stats
    apart = [epochs_pass(config, stats, [shard]) for shard in range(2)]
    whole = epochs_pass(config, stats, [0, 1])
    added = Totals.from_json((apart[0] + apart[1]).to_json())
    for name, value in whole.sums.items():
        np.testing.assert_array_equal(added[name], value)
    assert added.rows == whole.rows
    assert {row["shard"] for row in added.rows["useful"]} == {0, 1}


def test_a_report_exists_in_every_state_of_a_run(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run")
    assert "No row is labelled yet" in shown(gather(config))
    made.ingested(config, "corpus", rows())
    assert "label corpus" in shown(gather(config))
    made.labelled(config, "corpus", teacher_probs())
    (tmp_path / "run/labels/calibration.json").unlink()
    page = shown(gather(config))
    assert "There is no gold to check against. The teacher hesitates most between" in page
    assert "not calibrated yet" in page
    assert "No epoch is trained yet" in page
    made.trained(config, 0, UNSURE)
    facts = gather(config)
    assert [step.state for step in facts.steps if step.name.startswith("epoch")] == [
        "done",
        "not started",
    ]
    page = shown(facts)
    assert "has not been measured on the test set yet" in page
    assert "The run is not finished: next is “ingest test”" in page


def test_missing_shards_are_left_out(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", test=None)
    labelled(config)
    labels = tmp_path / "run/labels"
    (labels / "part-00001.parquet").unlink()
    (labels / "manifest.json").write_text(
        (labels / "manifest.json").read_text().replace('"complete": true', '"complete": false')
    )
    facts = gather(config)
    assert facts.corpus["rows_c"].tolist() == [2, 4, 0]
    assert [(s.state, s.note) for s in facts.steps if s.name == "label corpus"] == [
        ("in progress", "1 of 2 shards so far")
    ]


def test_damage_is_reported_and_the_rest_is_shown(tmp_path: Path) -> None:
    config = finished(tmp_path / "run")
    (tmp_path / "run/epochs/01/selection/part-00001.parquet").write_bytes(b"PAR1")
    facts = gather(config)
    assert not facts.epochs
    assert facts.tested is not None
    kind, text = findings(facts)[0]
    assert kind == "bad"
    assert "epochs/01/selection/part-00001.parquet" in text
    assert "Is the student better?" in shown(facts)


@pytest.mark.parametrize("policy", ["all", "random", "freematch", "refined", "small_loss"])
def test_policies_without_thresholds_show_none(tmp_path: Path, policy: str) -> None:
    student = [made.answers(part, 0.7, 3) for part in STUDENT]
    selection = {"policy": policy, "class_floor": 0.0}
    facts = trained(tmp_path / "run", None, student, selection=selection)
    assert not facts.epochs["why_ec4"][:, :, [1, 2]].any()
    assert "left out because" not in left_out(facts)
    # The student's distributions are kept: where both are sure and differ the teacher may be wrong.
    assert {row.text for row in facts.rows["mistakes"]} == {"text 0 2", "text 0 3", "text 1 5"}
    assert "Likely mistakes of the teacher" in shown(facts)


def test_findings(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run")
    made.ingested(config, "corpus", rows())
    made.ingested(config, "test", [*rows()] * 4)
    for dataset, times in (("corpus", 1), ("test", 4)):
        made.labelled(config, dataset, teacher_probs() * times)
    made.trained(config, 0, UNSURE)
    made.tested(config, [made.answers([0] * 6, 0.99, 3) for _ in range(8)])
    facts = gather(config)
    found = {text: kind for kind, text in findings(facts)}
    assert not any("linear probe" in text for text in found)
    # The student labels all rows sport: 16 of 48 are right; the teacher is right on 36.
    assert found["The student's accuracy is 41.7 points below the teacher's on 48 test rows "
                 "(33\u00a0% against 75\u00a0%), more than chance explains."] == "bad"  # fmt: skip
    assert found["The student's F1 is below 0.5 for “tech”, “trade”."] == "warn"
    assert found["The test set has only 48 rows: its figures are imprecise."] == "note"
    unfinished = "The run is not finished: next is “epoch 2”. All figures are preliminary."
    assert found[unfinished] == "warn"
    metrics = {
        name: {"test": {"macro_f1": score}}
        for name, score in (("teacher", 0.7), ("probe", 0.5), ("student", 0.4))
    }
    told = findings(replace(facts, metrics=metrics, distilled={"keeps_probe": True}))
    assert (
        "warn",
        "The student is the linear probe, which was better than the fine-tuned encoder.",
    ) in told
    below = [text for kind, text in told if kind == "bad" and "below a linear probe" in text]
    assert len(below) == 1


def test_a_label_that_is_never_selected_comes_first(tmp_path: Path) -> None:
    sure = teacher_probs()
    sure[0][:2] = [0.5, 0.25, 0.25]  # all rows labelled sport
    facts = trained(
        tmp_path / "run", sure, epochs=1, student={"model": "s", "epochs": 1},
        selection={"thresholds": "fixed", "confidence_threshold": 0.7, "class_floor": 0.0},
    )  # fmt: skip
    assert findings(facts)[0] == (
        "bad", "No row of “sport” was ever selected: the student cannot learn this label.",
    )  # fmt: skip


def test_rejects_are_counted_and_shown(tmp_path: Path) -> None:
    config = finished(tmp_path / "run")
    made.rejected(
        config, "ingest-corpus",
        [{"row": n, "reason": "empty text", "source": "/data/a.csv"} for n in range(40)]
        + [{"row": 90, "reason": "<i>odd</i>", "detail": "<b>why</b>"}],
    )  # fmt: skip
    made.rejected(config, "label-corpus", [{"row": 3, "reason": "refused"}])
    facts = gather(config)
    assert facts.rejects == {
        "ingest-corpus: empty text": 40, "ingest-corpus: <i>odd</i>": 1, "label-corpus: refused": 1,
    }  # fmt: skip
    assert "text 0 3" in [row.text for row in facts.rows["rejected"]]
    page = shown(facts)
    assert "&lt;i&gt;odd&lt;/i&gt;" in page
    assert "&lt;b&gt;why&lt;/b&gt;" in page


def test_gold_of_the_corpus_takes_precedence(tmp_path: Path) -> None:
    config = finished(tmp_path / "run", corpus={"path": "c", "label_column": "label"})
    gold = gather(config).gold
    assert gold is not None
    assert gold.where == "corpus"
    assert confusions(gold.calibrated.confusion_cc)[0].rows == 2


def test_the_recorded_config_takes_precedence(tmp_path: Path) -> None:
    config = finished(tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    other = made.a_config(tmp_path / "x", ["a", "b"]).model_copy(
        update={"run_dir": str(tmp_path / "moved")}
    )
    assert gather(other).names == NAMES
    assert config.run_dir != str(tmp_path / "moved")
    (tmp_path / "moved/run.yaml").write_text("task: 3")
    with pytest.raises(ConfigError):
        write_report(other)


def test_figures_cannot_end_their_script_element(tmp_path: Path) -> None:
    names = ["</script><script>alert(1)</script>", "<!--", "&amp;"]
    config = made.a_config(tmp_path / "run", names, test=None)
    labelled(config)
    plots = {p.key: p.variants for s in sections_of(gather(config)) for p in s.plots}
    assert plots
    assert not set("<>&") & set(embedded(plots))


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0"), (0.0004, "under 0.1"), (0.042, "4.2"), (0.5, "50"), (1, "100")],
)
def test_percentages(share: float, text: str) -> None:
    assert percent(share) == f"{text}\u00a0%"
