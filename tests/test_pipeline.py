"""All stages in order, in this process, on a local Ray."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llkd import pipeline
from llkd.cluster import connection
from llkd.config.run import RunConfig
from llkd.distill.epoch_stats import read_stats
from llkd.errors import FingerprintError, IncompleteError, StudentError
from llkd.ingest.stage import ingest
from llkd.lab.benchmarks.overhead import account
from llkd.store.folder import Folder
from llkd.store.manifest import MANIFEST, Manifest
from llkd.store.schema import RunLayout
from tests.conftest import MakeConfig
from tests.helpers import run

pytestmark = pytest.mark.usefixtures("local_ray")


def test_a_missing_student_fails_before_the_teacher_labels(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    with pytest.raises(StudentError, match="student.model: cannot load demo/nosuch"):
        run("run", make_config(student={"model": "demo/nosuch"}))
    assert not (tmp_path / "run/labels").exists()


@pytest.mark.usefixtures("in_process")
def test_temporary_files_of_killed_tasks_are_deleted(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaving(config: RunConfig, dataset: str, tracker: Any) -> Manifest:
        manifest = ingest(config, dataset, tracker)
        (tmp_path / "run/corpus/.part-00003.parquet.0.tmp").write_bytes(b"half")
        return manifest

    monkeypatch.setattr(pipeline, "ingest", leaving)
    run("ingest", make_config(test=None))
    assert (tmp_path / "run/corpus/part-00003.parquet").exists()
    assert not list((tmp_path / "run").rglob(".*.tmp"))


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_teacher_of_one_label_and_a_test_set_of_another(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    lines = [json.dumps({"text": f"the phone {i}", "label": "tech"}) for i in range(8)]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    config = make_config(
        test={"path": str(tmp_path / "test.jsonl")},
        teacher={"engine_args": {"only": "sport"}, "calibration": "none"},
        student={"epochs": 2},
    )
    screen = run("run", config)
    assert screen.count("warning: no row selected of tech (of 0 labelled so), trade (of 0") == 2
    figures = Folder(config.run_dir).read_json("metrics.json")
    for who in ("teacher", "student"):
        assert figures[who]["test"]["accuracy"] == 0
        assert figures[who]["test"]["macro_f1"] == 0
        assert figures[who]["test"]["per_class"]["trade"]["support"] == 0
    predicted = run("predict", config)
    assert re.search(r"sport\W+420\W+100.0%", predicted), predicted
    assert re.search(r"trade\W+0\W+0.0%\W+-", predicted), predicted


@pytest.mark.usefixtures("no_report")
def test_the_stages_one_by_one(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(student={"epochs": 1})
    with pytest.raises(IncompleteError, match=r"Run jobs/ingest.py"):
        run("label", config)
    assert "ingest corpus: 420 rows" in run("ingest", config)
    with pytest.raises(IncompleteError, match=r"Run jobs/label.py"):
        run("distill", config)
    assert "label: 540 rows" in run("label", config)
    with pytest.raises(IncompleteError, match=r"Run jobs/distill.py"):
        run("evaluate", config)
    assert "epoch 1/1 training" in run("distill", config)
    assert connection.actors_of("worker")  # by the name that Ray Train gives
    assert "macro-F1" in run("evaluate", config)
    shares = account(config, 1000.0)
    seconds = shares["seconds"]
    assert sum(seconds[name] for name in ("teacher", "student", "rows", "rest")) == 1000.0
    assert shares["ratios"]["useful_share"] == pytest.approx(1 - seconds["rest"] / 1000)
    tested = Folder(RunLayout(config.run_dir).test_predictions).read_json(MANIFEST)["results"]
    stats = read_stats(config, 0)
    trained = stats["seconds"]["score"] + stats["seconds"]["train"]
    student = trained + 120 / tested["rows_per_second"]
    idle = stats["waiting"]["seconds"]
    assert seconds["student"] == pytest.approx(student - idle["batches"] - idle["others"])
    assert (tmp_path / "run/student/model.safetensors").exists()
    with pytest.raises(FingerprintError, match=r"student.epochs: was 1, now 2"):
        run("evaluate", make_config(student={"epochs": 2}))
