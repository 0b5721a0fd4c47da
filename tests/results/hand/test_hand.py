"""Rows for a person to label, their way back, and what they say of the corpus."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from llkd.config.run import RunConfig
from llkd.errors import DataError, FingerprintError, IncompleteError
from llkd.pipeline import run_all, run_evaluate, run_review, run_sample
from llkd.results.hand import sample
from llkd.results.hand.estimates import curve_gain, estimate_on_corpus
from llkd.results.hand.sentences import sentences
from llkd.store.folder import Folder
from llkd.store.schema import METRICS, RunLayout
from llkd.teacher.calibrate import calibrate
from llkd.teacher.gold import read_gold, told_gold
from tests.conftest import ROOT, MadeRun, MakeConfig
from tests.helpers import environment

pytestmark = pytest.mark.usefixtures("in_process")


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def printed(shown: Console) -> str:
    return shown.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def files(config: RunConfig, name: str) -> Path:
    return Path(RunLayout(config.run_dir).hand(name))


def records(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def gold_by_text(config: RunConfig) -> dict[str, str]:
    """The corpus's own labels, in place of a person's."""
    rows, found = Folder(RunLayout(config.run_dir).rows("corpus")), {}
    for shard in rows.shards():
        table = rows.read_shard(shard, ["text", "gold"]).to_pydict()
        names = [None if gold is None else config.task.label_names[gold] for gold in table["gold"]]
        found.update(zip(table["text"], names, strict=True))
    return {text: name for text, name in found.items() if name}


def fill(config: RunConfig, name: str, target: Path) -> int:
    """Label the rows of a sample; returns how many."""
    known = gold_by_text(config)
    rows = records(files(config, name) / "rows.csv")
    for row in rows:
        row["label"] = known.get(row["text"], "")
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def test_half_of_a_sample_is_uniform_and_it_is_never_replaced(
    tmp_path: Path, labelled_run: MadeRun
) -> None:
    run = labelled_run.copy(tmp_path / "run")
    config, shown = run.config(), console()
    run_sample(config, shown, 40, blind=False)
    first = records(files(config, "sample-01") / "rows.csv")
    uniform = [row["uniform"] == "true" for row in first]
    assert 36 <= len(first) <= 40
    assert sum(uniform) >= 18
    assert f"{len(first)} rows to label: {sum(uniform)} drawn uniformly" in printed(shown)
    assert {row["label"] for row in first} == {""}
    assert {row["teacher"] for row in first} <= set(config.task.label_names)
    probabilities = np.array([float(row["probability"]) for row in first])
    assert ((probabilities > 0) & (probabilities <= 1)).all()
    of_both = [probabilities[np.array(uniform)], probabilities[~np.array(uniform)]]
    assert of_both[1].mean() > of_both[0].mean()  # doubtful rows are likelier to be chosen
    run_sample(config, console(), 40, blind=True)
    second = records(files(config, "sample-02") / "rows.csv")
    assert "teacher" not in second[0]
    assert {row["text"] for row in second} != {row["text"] for row in first}
    assert records(files(config, "sample-01") / "rows.csv") == first


def test_before_labelling_all_rows_are_uniform(tmp_path: Path, make_config: MakeConfig) -> None:
    config, shown = make_config(run_dir=str(tmp_path / "run")), console()
    run_sample(config, shown, 30, blind=False)
    rows = records(files(config, "sample-01") / "rows.csv")
    assert {row["uniform"] for row in rows} == {"true"}
    assert "teacher" not in rows[0]
    assert len({row["probability"] for row in rows}) == 1
    with pytest.raises(IncompleteError):
        run_review(config, console(), 10)


def test_review_lists_what_the_probes_contradict(
    tmp_path: Path, labelled_run: MadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = labelled_run.copy(tmp_path / "run").config()
    real = sample._doubts

    def knowing(config: RunConfig, tracker: Any) -> sample.Doubts:
        """Probes that know the gold label; the less sure the teacher, the surer."""
        found, rows = real(config, tracker), Folder(RunLayout(config.run_dir).rows("corpus"))
        gold = [
            rows.read_shard(shard, ["gold"])["gold"][row].as_py()
            for shard, row in zip(found.shard_k.tolist(), found.row_k.tolist(), strict=True)
        ]
        student_kc = 0.05 + 0.85 * np.eye(3)[gold]
        return replace(found, student_kc=student_kc)

    monkeypatch.setattr(sample, "_doubts", knowing)
    run_review(config, console(), 12)
    rows, known = records(files(config, "review-01") / "rows.csv"), gold_by_text(config)
    assert 5 < len(rows) <= 12
    assert {(row["probability"], row["uniform"], row["label"]) for row in rows} == {("", "", "")}
    for row in rows:
        assert row["student"] == known[row["text"]] != row["teacher"]
    confidence = [float(row["teacher_confidence"]) for row in rows]
    assert confidence == sorted(confidence)
    run_review(config, console(), 100_000)
    wrong = len(_teacher_right(config)) - sum(_teacher_right(config))
    assert len(records(files(config, "review-02") / "rows.csv")) == wrong


def _teacher_right(config: RunConfig) -> list[bool]:
    layout, calibration, found = RunLayout(config.run_dir), calibrate(config), list[bool]()
    for shard in Folder(layout.labels("corpus")).shards():
        labels = Folder(layout.labels("corpus")).read_shard(shard)
        gold = (
            Folder(layout.rows("corpus"))
            .read_shard(shard, ["gold"])["gold"]
            .take(labels["row"])
            .to_pylist()
        )
        said = calibration.apply(np.array(labels["logprobs"].to_pylist())).argmax(axis=1)
        found += [int(a) == b for a, b in zip(said, gold, strict=True) if b is not None]
    return found


def test_from_a_sample_to_intervals_on_the_corpus(tmp_path: Path, finished_run: MadeRun) -> None:
    run, file = finished_run.copy(tmp_path / "run"), tmp_path / "hand.csv"
    config = run.config()
    run_sample(config, console(), 80, blind=False)
    rows = fill(config, "sample-01", file)
    layout = RunLayout(config.run_dir)
    former = (Path(layout.student) / "model.safetensors").read_bytes()
    labels = {
        path: path.stat().st_mtime_ns for path in Path(layout.labels("corpus")).glob("part-*")
    }
    gold = {"path": str(file), "probability_column": "probability"}
    config, shown = run.config(gold=gold), console()
    run_all(config, shown)
    assert "the student is trained again" in printed(shown)
    assert (Path(layout.student) / "model.safetensors").read_bytes() != former
    assert {
        path: path.stat().st_mtime_ns for path in labels
    } == labels  # the teacher has nothing to do again
    estimates = Folder(layout.root).read_json(METRICS)["estimates"]
    known = read_gold(config)
    assert known is not None
    assert rows - 10 <= estimates["teacher"]["rows"] == len(known.texts) <= rows
    assert estimates["student"]["rows"] == int(known.judges_m.sum()) == len(known.texts) // 2
    teacher = estimates["teacher"]["accuracy"]
    assert teacher["low"] <= np.mean(_teacher_right(config)) <= teacher["high"]
    assert 0 < teacher["high"] - teacher["low"] < 0.4
    assert "The student is right on" in printed(shown)
    report = (Path(layout.root) / "report.html").read_text()
    assert "On the corpus, with 95" in report
    told = told_gold(config)
    assert told is not None
    assert not set(told.texts) & {
        text for text, judges in zip(known.texts, known.judges_m, strict=True) if judges
    }

    # a second round: the labelled rows are left out, and the student follows the longer file
    run_sample(config, console(), 40, blind=False)
    again = {row["text"] for row in records(files(config, "sample-02") / "rows.csv")}
    assert not again & set(known.texts)
    shown = console()
    run_all(config, shown)
    assert "trained again" not in printed(shown)  # the same rows


def test_corrections_are_learnt_and_never_judge(tmp_path: Path, finished_run: MadeRun) -> None:
    run, file = finished_run.copy(tmp_path / "run"), tmp_path / "hand.csv"
    run_review(run.config(), console(), 12)
    fill(run.config(), "review-01", file)
    config = run.config(gold={"path": str(file), "probability_column": "probability"})
    run_all(config, console())
    known = read_gold(config)
    assert known is not None
    assert len(known.texts) > 5
    assert not known.judges_m.any()
    assert np.isnan(known.probability_m).all()
    assert estimate_on_corpus(config, calibrate(config)) is None
    assert "estimates" not in Folder(RunLayout(config.run_dir).root).read_json(METRICS)


def test_another_command_does_not_throw_a_student_away(
    tmp_path: Path, finished_run: MadeRun
) -> None:
    run, file = finished_run.copy(tmp_path / "run"), tmp_path / "hand.csv"
    file.write_text("text,label\na goal,sport\n")
    student = Path(RunLayout(run.config().run_dir).student) / "model.safetensors"
    with pytest.raises(FingerprintError, match="gold"):
        run_evaluate(run.config(gold={"path": str(file)}), console())
    assert student.exists()


def test_a_student_is_kept_where_something_else_has_changed_too(
    tmp_path: Path, finished_run: MadeRun
) -> None:
    run, file = finished_run.copy(tmp_path / "run"), tmp_path / "hand.csv"
    file.write_text("text,label\na goal,sport\n")
    student = Path(RunLayout(run.config().run_dir).student) / "model.safetensors"
    for others in (
        {"corpus": {"rows_per_shard": 17}},
        {"selection": {"policy": "all"}},
        {"seed": 5},
    ):
        with pytest.raises(FingerprintError):
            run_all(run.config(gold={"path": str(file)}, **others), console())
        assert student.exists(), others


def test_an_interrupted_deletion_is_taken_up_again(
    tmp_path: Path, finished_run: MadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, file = finished_run.copy(tmp_path / "run"), tmp_path / "hand.csv"
    file.write_text("text,label\na goal,sport\n")
    config = run.config(gold={"path": str(file)})
    epochs = Folder(RunLayout(config.run_dir).epochs)
    delete = Folder.delete

    def killed(self: Folder) -> None:
        if self.uri.endswith("epochs/01"):
            raise KeyboardInterrupt
        delete(self)

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            run_all(config, console())
    assert epochs.exists("manifest.json")  # what is left belongs to the former student
    assert "00" not in epochs.names()
    shown = console()
    run_all(config, shown)
    assert "the student is trained again" in printed(shown)
    assert Folder(RunLayout(config.run_dir).root).exists(METRICS)


def test_a_renamed_file_of_the_same_rows_trains_nothing_again(
    tmp_path: Path, finished_run: MadeRun
) -> None:
    run, file = finished_run.copy(tmp_path / "run"), tmp_path / "hand.csv"
    file.write_text("text,label\na goal,sport\n")
    run_all(run.config(gold={"path": str(file)}), console())
    student = Path(RunLayout(run.config().run_dir).student) / "model.safetensors"
    written = student.stat().st_mtime_ns
    shown, other = console(), file.rename(tmp_path / "renamed.csv")
    run_all(run.config(gold={"path": str(other)}), shown)
    assert "trained again" not in printed(shown)
    assert student.stat().st_mtime_ns == written


def test_a_probability_must_be_a_number(tmp_path: Path, labelled_run: MadeRun) -> None:
    run, file = labelled_run.copy(tmp_path / "run"), tmp_path / "hand.csv"
    for value in ("often", "0", "-1", "inf", "nan"):
        file.write_text(f"text,label,probability\na goal,sport,0.1\na chip,tech,{value}\n")
        config = run.config(gold={"path": str(file), "probability_column": "probability"})
        with pytest.raises(DataError, match=r"hand\.csv, row 2, column 'probability'"):
            run_all(config, console())


def test_the_worth_of_more_rows_follows_the_learning_curve() -> None:
    curve = [[0, 0.6], [20, 0.70], [40, 0.75]]  # a + b/n: 0.8 - 2/n
    assert curve_gain(curve, 40) == pytest.approx(2 / 40 - 2 / 80)
    assert curve_gain([[0, 0.6], [20, 0.8], [40, 0.7]], 40) == 0.0
    assert curve_gain([[0, 0.6]], 40) == 0.0


def test_sentences_say_what_chance_explains() -> None:
    figure = {"value": 0.88, "low": 0.83, "high": 0.92}
    estimates = {
        "teacher": {"rows": 100, "accuracy": {"value": 0.7, "low": 0.6, "high": 0.8}},
        "student": {"rows": 50, "accuracy": figure},
        "difference": {"value": 0.18, "low": 0.1, "high": 0.26, "z": 4.0},
        "more": {"rows": 100, "half_width": 0.03, "right_labels": 0.012},
    }
    text = " ".join(sentences(estimates))
    assert "right on 88 % (83 to 92 %) of the corpus, by 50 rows" in text
    assert "above the teacher by 18 points" in text
    assert "± 3 points, and raise the right labels that it learns by about 1.2 points" in text
    below = {**estimates, "difference": {"value": -0.18, "z": -4.0}}
    assert "below the teacher by 18" in " ".join(sentences(below))
    chance = {**estimates, "difference": {"value": 0.02, "z": 0.5}}
    assert "may be chance" in " ".join(sentences(chance))
    few = {"teacher": estimates["teacher"]}
    assert "gold.judge" in " ".join(sentences(few))


def test_the_jobs_say_what_they_need() -> None:
    for job, text in (("sample", "--blind"), ("review", "never judge")):
        shown = subprocess.run(
            [sys.executable, f"jobs/{job}.py", "--help"], cwd=ROOT, env=environment(), text=True,
            capture_output=True, check=True,
        )  # fmt: skip
        assert text in shown.stdout
    refused = subprocess.run(
        [sys.executable, "jobs/sample.py", "jobs/configs/bbc.yaml", "--rows", "0"], cwd=ROOT,
        env=environment(), text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "--rows must be at least 1" in refused.stderr


def test_argilla_gets_the_design_as_metadata(tmp_path: Path, labelled_run: MadeRun) -> None:
    config = labelled_run.copy(tmp_path / "run").config()
    run_sample(config, console(), 20, blind=False)
    found = json.loads((files(config, "sample-01") / "argilla.json").read_text())
    assert {record["metadata"]["uniform"] for record in found} <= {"true", "false"}
    assert all(0 < record["metadata"]["probability"] <= 1 for record in found)
    assert all(record["suggestions"]["label"]["agent"] == "teacher" for record in found)
