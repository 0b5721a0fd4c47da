"""Labelling in rounds: the real stages on a local Ray, with a fake teacher."""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from llkd import rounds
from llkd.config.run import RunConfig
from llkd.errors import DataError, FingerprintError, RejectLimitError, StudentError
from llkd.lab.compare.compare import variants
from llkd.store.arrays import matrix
from llkd.store.folder import Folder
from llkd.store.manifest import read_manifest, reopen
from llkd.store.schema import RunLayout, shard_name
from llkd.teacher.calibrate import calibrate
from tests.conftest import MakeConfig, config_maker
from tests.fakes import text_key
from tests.helpers import calls_in, run
from tests.in_process import in_process

pytestmark = pytest.mark.usefixtures("local_ray", "in_process", "no_report")

SHARDS = 7
BUDGET = {"budget": 0.4, "rounds": 3, "first": 0.5}


@dataclass
class Labelled:
    """A run that is labelled in rounds, and the calls of its teacher."""

    make: MakeConfig
    calls: Path
    folder: Path
    screen: str = ""

    def config(self, **sections: Any) -> RunConfig:
        """The config of the run, with other settings."""
        return self.make(
            run_dir=str(self.folder),
            corpus={"label_column": "label", **sections.pop("corpus", {})},
            label={**BUDGET, **sections.pop("label", {})},
            teacher={"engine_args": {"calls": str(self.calls)}, **sections.pop("teacher", {})},
            student={"epochs": 1, **sections.pop("student", {})},
            **sections,
        )

    def another(self, folder: Path) -> "Labelled":
        """A new run; the teacher's calls are counted afresh."""
        self.calls.write_text("")
        return Labelled(self.make, self.calls, folder)

    def copy(self, folder: Path) -> "Labelled":
        """A copy of the run; the teacher's calls are counted afresh."""
        shutil.copytree(self.folder, folder)
        return self.another(folder)

    def round(self, number: int) -> RunLayout:
        return RunLayout(str(self.folder)).round(number)

    def asked(self) -> Counter[str]:
        return calls_in(self.calls)

    def keys(self, dataset: str, rows: list[list[int]]) -> Counter[str]:
        """The keys that `asked` has for these rows of each shard."""
        folder = Folder(RunLayout(str(self.folder)).rows(dataset))
        texts = [folder.read_shard(shard)["text"].to_pylist() for shard in range(len(rows))]
        return Counter(text_key(texts[s][row]) for s, part in enumerate(rows) for row in part)


@pytest.fixture(scope="module")
def labelled(
    local_ray: None, tmp_path_factory: pytest.TempPathFactory, tiny_student: str,
    corpus_files: tuple[str, str],
) -> Labelled:  # fmt: skip
    """Made once; tests change copies."""
    folder = tmp_path_factory.mktemp("rounds")
    make = config_maker(folder, tiny_student, corpus_files)
    made = Labelled(make, folder / "calls", folder / "run")
    run("ingest", made.config())
    with in_process():
        made.screen = run("label", made.config())
    return made


def rows_in(uri: str) -> list[list[int]]:
    """The rows of each shard of a folder."""
    return [Folder(uri).read_shard(shard, ["row"])["row"].to_pylist() for shard in range(SHARDS)]


def test_each_row_of_the_budget_is_labelled_once(labelled: Labelled) -> None:
    for line in ("round 1/3: 84 of", "round 2/3: 42 of", "round 3/3: 42 of 420 rows chosen"):
        assert line in labelled.screen
    layout = RunLayout(str(labelled.folder))
    found = rows_in(layout.labels("corpus"))
    assert sum(map(len, found)) == 168  # 0.4 of 420
    wanted = [rows_in(labelled.round(number).wanted) for number in range(3)]
    assert [sum(map(len, parts)) for parts in wanted] == [84, 42, 42]
    for shard in range(SHARDS):
        assert found[shard] == sorted(set(found[shard]))
        assert found[shard] == sorted(row for parts in wanted for row in parts[shard])
    expected = labelled.keys("corpus", found) + labelled.keys("test", [list(range(120))])
    asked = labelled.asked()
    assert {key: asked[key] for key in expected} == dict.fromkeys(expected, 1)
    assert len(asked) == len(expected) + 3  # the content-free texts
    manifest = read_manifest(Folder(layout.labels("corpus")))
    assert manifest is not None
    assert manifest.results["rows"] == [len(part) for part in found]
    assert manifest.results["label_mass"] == pytest.approx(np.exp(-0.5), abs=1e-6)
    answers = Folder(labelled.round(2).answers).read_shard(3).to_pylist()
    merged = Folder(layout.labels("corpus")).read_shard(3).to_pylist()
    assert answers
    assert all(row in merged for row in answers)


def test_students_of_rounds_are_deleted_and_their_statistics_kept(labelled: Labelled) -> None:
    left = {name for n in range(3) for name in Folder(labelled.round(n).root).names()}
    assert left == {"wanted", "answers", "labels", "epochs", "predictions"}
    assert Folder(f"{labelled.round(0).root}/predictions").names() == []
    assert Folder(labelled.round(0).epoch(0)).exists("stats.json")


def test_calibration_uses_the_random_rows(labelled: Labelled) -> None:
    config = labelled.config()
    for number in range(3):
        own = calibrate(rounds.of_round(config, number) if number < 2 else config)
        first = Folder(labelled.round(0).answers)
        logprobs = np.concatenate([matrix(first.read_shard(s)["logprobs"]) for s in range(SHARDS)])
        assert own.apply(logprobs).mean(axis=0) == pytest.approx([1 / 3] * 3, abs=1e-3)


def test_the_run_continues_from_the_labels_of_its_rounds(
    tmp_path: Path, labelled: Labelled
) -> None:
    again = labelled.copy(tmp_path / "run")
    screen = run("run", again.config(student={"learning_rate": 1e-3}))  # of another student
    assert "round" not in screen
    assert again.asked() == {}
    metrics = Folder(str(again.folder)).read_json("metrics.json")
    assert (metrics["teacher"]["rows"], metrics["selection"]["rows"]) == (168, 168)
    assert metrics["teacher"]["labelled_fraction"] == pytest.approx(0.4)
    assert metrics["teacher"]["corpus"]["rows"] == 168
    assert metrics["student"]["test"]["rows"] == 120
    for _, compared in variants(again.config(), ["random"], 2):
        run("label", compared)
        assert calibrate(compared).bias_c.tolist() == calibrate(again.config()).bias_c.tolist()
    assert again.asked() == {}
    assert not (again.folder / "compare/random-0/rounds").exists()
    with pytest.raises(FingerprintError, match=r"label.budget: was 0.4, now 0.5"):
        run("label", again.config(label={"budget": 0.5}))


def test_a_killed_run_labels_only_the_missing_rows(tmp_path: Path, labelled: Labelled) -> None:
    again = labelled.copy(tmp_path / "run")
    layout, middle = RunLayout(str(again.folder)), again.round(1)
    before = rows_in(layout.labels("corpus"))
    for uri in (layout.labels("corpus"), middle.labels("corpus")):
        Folder(uri).delete()
    answers = Folder(middle.answers)
    answers.delete_file(shard_name(2))
    reopen(answers)
    screen = run("label", again.config())
    assert "epoch" not in screen  # the rows of the next round were chosen: no student is trained
    missing: list[list[int]] = [[] for _ in range(SHARDS)]
    missing[2] = rows_in(middle.wanted)[2]
    assert again.asked() == again.keys("corpus", missing)
    assert rows_in(layout.labels("corpus")) == before
    for number in range(3):
        assert rows_in(again.round(number).wanted) == rows_in(labelled.round(number).wanted)


def test_a_run_killed_between_rounds_ends_like_an_undisturbed_one(
    tmp_path: Path, labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = labelled.copy(tmp_path / "run")
    layout = RunLayout(str(again.folder))
    for uri in (layout.labels("corpus"), again.round(2).root):
        Folder(uri).delete()  # so that the student before the last round is trained again

    def die(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rounds, "predict", die)
        with pytest.raises(KeyboardInterrupt):
            run("label", again.config())
    assert again.asked() == {}
    for message, changes in (
        ("student.learning_rate: was 0.002, now 0.1", {"student": {"learning_rate": 0.1}}),
        ('selection.uncertainty: was "entropy", now "margin"',
         {"selection": {"uncertainty": "margin"}}),
        ("label.first: was 0.5, now 0.4", {"label": {"first": 0.4}}),
        ("seed: was 0, now 1", {"seed": 1}),
    ):  # fmt: skip
        with pytest.raises(FingerprintError, match=message):
            run("label", again.config(**changes))
    screen = run("label", again.config())
    assert "round 3/3" in screen
    assert "epoch" not in screen
    assert again.asked() == again.keys("corpus", rows_in(labelled.round(2).wanted))
    theirs = Folder(RunLayout(str(labelled.folder)).labels("corpus"))
    for shard in range(SHARDS):
        ours = Folder(layout.labels("corpus")).read_shard(shard)
        assert ours.equals(theirs.read_shard(shard))


def test_a_whole_corpus_has_no_rounds(tmp_path: Path, labelled: Labelled) -> None:
    again = labelled.another(tmp_path / "run")
    config = again.config(label={"budget": 1.0, "rounds": 5, "first": 0.1})
    run("ingest", config)
    run("label", config)
    assert sorted(Folder(str(again.folder)).names()) == [
        "content_free_labels", "corpus", "labels", "run.yaml", "test", "test_labels",
    ]  # fmt: skip
    manifest = read_manifest(Folder(RunLayout(str(again.folder)).labels("corpus")))
    assert manifest is not None
    assert sum(manifest.results["rows"]) == 420
    assert not [key for key in manifest.settings if key.startswith("label.")]
    assert set(manifest.results) == {
        "rows", "rejected", "label_mass", "seconds", "rows_per_second",
    }  # fmt: skip


def test_a_single_round_is_random_and_refused_rows_use_up_the_budget(
    tmp_path: Path, labelled: Labelled
) -> None:
    again = labelled.another(tmp_path / "run")
    arguments = {"calls": str(again.calls), "refuse": "goal"}
    config = again.config(
        label={"rounds": 1, "budget": 0.1}, teacher={"engine_args": arguments},
        max_reject_fraction=0.5, corpus={"id_column": "id"},
    )  # fmt: skip
    run("ingest", config)
    screen = run("label", config)
    assert "round 1/1: 42 of 420 rows chosen" in screen
    assert "epoch" not in screen
    layout = RunLayout(str(again.folder))
    manifest = read_manifest(Folder(layout.labels("corpus")))
    assert manifest is not None
    rejected = manifest.results["rejected"]
    assert rejected > 0
    assert sum(manifest.results["rows"]) + rejected == 42
    rejects = Folder(layout.rejects("label-corpus"))
    wanted, kept = rows_in(again.round(0).wanted), rows_in(layout.labels("corpus"))
    for shard in range(SHARDS):
        refused = sorted(set(wanted[shard]) - set(kept[shard]))
        listed = rejects.read_shard(shard) if shard in rejects.shards() else None
        assert refused == ([] if listed is None else listed["row"].to_pylist())
        if listed is not None:
            assert listed["id"].to_pylist() == [f"corpus-{60 * shard + row}" for row in refused]
    assert sorted(Folder(layout.rounds).names()) == ["00"]


def test_refused_rows_are_limited_by_the_budget(tmp_path: Path, labelled: Labelled) -> None:
    again = labelled.another(tmp_path / "run")
    arguments = {"calls": str(again.calls), "refuse": "goal"}
    config = again.config(
        label={"rounds": 1, "budget": 0.1}, teacher={"engine_args": arguments},
        max_reject_fraction=0.01, test=None,
    )  # fmt: skip
    run("ingest", config)
    with pytest.raises(RejectLimitError, match="of the 42 rows of label.budget"):
        run("label", config)
    asked = again.asked()
    run("label", config.model_copy(update={"max_reject_fraction": 0.5}))
    assert again.asked() == asked  # the answers are kept
    assert not Folder(again.round(0).labels("corpus")).names()  # no student learns from them


def test_a_part_of_labels_from_a_table(
    tmp_path: Path, labelled: Labelled, corpus_files: tuple[str, str]
) -> None:
    table = pq.read_table(corpus_files[0])
    pq.write_table(table.select(["id", "label"]), tmp_path / "labels.parquet")
    again = labelled.another(tmp_path / "run")
    teacher = {"engine": "table", "model": str(tmp_path / "labels.parquet"), "engine_args": {}}
    config = again.config(
        label={"rounds": 1}, teacher={**teacher, "calibration": "none"}, test=None,
        corpus={"id_column": "id"},
    )  # fmt: skip
    run("ingest", config)
    run("label", config)
    names, gold = config.task.label_names, table["label"].to_pylist()
    for shard in range(SHARDS):
        found = Folder(RunLayout(config.run_dir).labels("corpus")).read_shard(shard)
        label_n = matrix(found["logprobs"]).argmax(axis=1)
        assert [names[i] for i in label_n] == [
            gold[60 * shard + r] for r in found["row"].to_pylist()
        ]


def test_labelling_stops_without_a_better_student(
    tmp_path: Path, labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = labelled.another(tmp_path / "run")
    config = again.config(
        label={"budget": 0.8, "rounds": 4, "first": 0.7, "patience": 1, "diversity": False},
        student={"validation_fraction": 0.2}, test=None,
    )  # fmt: skip
    run("ingest", config)
    real = rounds._score

    def falling(run: RunConfig) -> float:
        score = real(run)
        assert 0 <= score <= 1
        return -float(run.run_dir[-2:])

    monkeypatch.setattr(rounds, "_score", falling)
    screen = run("label", config)
    assert "round 2: no better student, labelling stops" in screen
    layout = RunLayout(config.run_dir)
    # 0.8 * 420 = 336: 235 in the first round, a third of the rest in the second.
    assert sum(map(len, rows_in(layout.labels("corpus")))) == 235 + 33
    assert Folder(layout.rounds).names() == ["00", "01"]
    assert "round" not in run("label", config)


def test_impossible_settings_are_refused_first(tmp_path: Path, labelled: Labelled) -> None:
    again = labelled.another(tmp_path / "run")
    run("ingest", again.config())
    with pytest.raises(StudentError, match="student.model: cannot load demo/nosuch"):
        run("label", again.config(student={"model": "demo/nosuch"}))
    with pytest.raises(DataError, match=r"label.budget = 0.001 of 420 rows is less than one row"):
        run("label", again.config(label={"budget": 0.001}))
    assert again.asked() == {}
