"""Predictions of whole corpora by the finished student, on a real local Ray."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch

from llkd.cluster.progress import ProgressTracker
from llkd.config.run import RunConfig
from llkd.errors import ConfigError, FingerprintError, IncompleteError, RejectLimitError
from llkd.results.predict import pass_over_corpus, predict
from llkd.store.arrays import matrix
from llkd.store.folder import Folder
from llkd.store.manifest import MANIFEST
from llkd.store.schema import RunLayout, predictions_schema
from llkd.student.model import load_finished
from llkd.student.scoring import Scorer
from tests.conftest import MadeRun, MakeConfig, SilentTracker
from tests.fakes import DeadlyTracker, make_texts
from tests.helpers import run
from tests.in_process import in_process

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def make(finished_run: MadeRun, tmp_path_factory: pytest.TempPathFactory) -> MakeConfig:
    """Configs of one finished run; each test names its own predictions."""
    copy = finished_run.copy(tmp_path_factory.mktemp("finished") / "run")

    def make_with(**predict: Any) -> RunConfig:
        return copy.config(run_dir=predict.pop("run_dir", str(copy.folder)), predict=predict)

    return make_with


def predicted(config: RunConfig, tracker: Any = None) -> Folder:
    tracker = tracker or ProgressTracker.remote()  # type: ignore[attr-defined]
    wanted = pass_over_corpus(config)
    predict(config, wanted, tracker)
    return wanted.folder


def scored(config: RunConfig, texts: list[str]) -> np.ndarray:
    """The scorer's own distributions."""
    tokenizer, model = load_finished(RunLayout(config.run_dir).student)
    torch.set_num_threads(1)
    scorer = Scorer(tokenizer, model, max_length=config.student.max_length)
    return scorer.probabilities(texts)


def times(folder: Folder) -> dict[str, int]:
    """When each shard was written."""
    return {path.name: path.stat().st_mtime_ns for path in Path(folder.uri).glob("part-*")}


def corpus_rows(config: RunConfig, shard: int) -> pa.Table:
    return Folder(RunLayout(config.run_dir).rows("corpus")).read_shard(shard)


def test_every_row_gets_the_students_label_by_name(make: MakeConfig) -> None:
    config = make()
    folder = predicted(config)
    assert folder.uri == f"{config.run_dir}/predictions/corpus"
    names = config.task.label_names
    counts = dict.fromkeys(names, 0)
    for shard in range(7):
        rows, table = corpus_rows(config, shard), folder.read_shard(shard)
        probs = scored(config, rows["text"].to_pylist())
        assert table.schema.equals(predictions_schema(True, None))
        assert table["row"].to_pylist() == list(range(60))
        assert table["id"].to_pylist() == rows["id"].to_pylist()
        assert table["label"].to_pylist() == [names[i] for i in probs.argmax(axis=1)]
        assert table["confidence"].to_numpy() == pytest.approx(probs.max(axis=1), abs=1e-5)
        for name in table["label"].to_pylist():
            counts[name] += 1
    results = folder.read_json(MANIFEST)["results"]
    assert results["rows"] == [60] * 7
    assert {name: entry["rows"] for name, entry in results["labels"].items()} == counts
    whole = ds.dataset(folder.uri, format="parquet", exclude_invalid_files=True).to_table()
    confidence = whole["confidence"].to_numpy().mean(dtype=np.float64)
    sums = [entry["rows"] * entry["confidence"] for entry in results["labels"].values()]
    assert sum(sums) / 420 == pytest.approx(confidence)


@pytest.mark.usefixtures("in_process")
def test_the_whole_distribution_on_request(make: MakeConfig) -> None:
    config = make(name="full", probabilities=True, replicas=[2, 2], resources={"CPU": 1})
    folder = predicted(config)
    table = folder.read_shard(3)
    expected = scored(config, corpus_rows(config, 3)["text"].to_pylist())
    assert table.schema.equals(predictions_schema(True, 3))
    assert matrix(table["probs"]) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(FingerprintError, match="probabilities: was true, now false"):
        predicted(make(name="full"))


@pytest.mark.usefixtures("in_process")
def test_only_missing_shards_are_predicted_and_a_complete_pass_is_kept(make: MakeConfig) -> None:
    config = make(name="resumed")
    folder = predicted(config)
    first = folder.read_json(MANIFEST)
    content = folder.read_shard(2)
    before = times(folder)
    folder.delete_file("part-00002.parquet")
    folder.write_json(MANIFEST, {**first, "complete": False})
    tracker = ProgressTracker.remote()  # type: ignore[attr-defined]
    predicted(config, tracker)
    after = times(folder)
    assert {name for name in before if before[name] != after[name]} == {"part-00002.parquet"}
    assert folder.read_shard(2).equals(content)
    again = folder.read_json(MANIFEST)["results"]
    assert again["rows"] == first["results"]["rows"]
    for name, entry in first["results"]["labels"].items():
        assert again["labels"][name]["rows"] == entry["rows"]
        assert again["labels"][name]["confidence"] == pytest.approx(entry["confidence"])
    import ray

    state = ray.get(tracker.since.remote(0))[-1]
    assert (state.name, state.rows, state.skipped) == ("student on corpus", 420, 360)
    silent = SilentTracker()
    predicted(config, silent)
    assert silent.calls == []


@pytest.mark.usefixtures("in_process")
def test_another_students_predictions_are_refused(tmp_path: Path, make: MakeConfig) -> None:
    shutil.copytree(make().run_dir, tmp_path / "copy")
    config = make(name="theirs", run_dir=str(tmp_path / "copy"))
    predicted(config)
    student = Folder(RunLayout(config.run_dir).student)
    student.write_json(MANIFEST, {**student.read_json(MANIFEST), "upstream": "of another"})
    with pytest.raises(FingerprintError, match=r'predictions/theirs was made .*\n  student: was "'):
        predicted(config)
    student.delete()
    with pytest.raises(IncompleteError, match="Run jobs/distill.py"):
        run("predict", make(path=str(tmp_path / "nothing.csv"), run_dir=config.run_dir))


def written(path: Path, count: int, seed: int, bad: int = 0) -> str:
    """Labelled rows as JSON lines, the last of them without text."""
    texts, gold = make_texts(count, seed)
    lines = [
        {"body": text if number < count - bad else " ", "topic": topic, "key": f"k{number}"}
        for number, (text, topic) in enumerate(zip(texts, gold, strict=True))
    ]
    lines[0]["topic"] = None  # type: ignore[assignment]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.mark.usefixtures("in_process")
def test_another_corpus_is_ingested_predicted_and_measured(
    tmp_path: Path, make: MakeConfig
) -> None:
    (tmp_path / "new-rows").mkdir()
    path = written(tmp_path / "new-rows/a.jsonl", 50, seed=7, bad=3)
    source = {
        "path": str(tmp_path / "new-rows/*.jsonl"), "text_column": "body",
        "label_column": "topic", "id_column": "key", "rows_per_shard": 20,
    }  # fmt: skip
    config = make(**source)
    output = run("predict", config)
    folder = Folder(f"{config.run_dir}/predictions/new-rows")
    assert [folder.shard_rows(shard) for shard in range(3)] == [20, 20, 7]
    names, texts, gold, ids = config.task.label_names, [], [], []
    for shard in range(3):
        rows = Folder(f"{config.run_dir}/predict/new-rows").read_shard(shard)
        texts += rows["text"].to_pylist()
        gold += rows["gold"].to_pylist()
        ids += folder.read_shard(shard)["id"].to_pylist()
    assert ids == [f"k{i}" for i in range(47)]
    assert gold[0] is None
    probs = scored(config, texts)
    given = [name for shard in range(3) for name in folder.read_shard(shard)["label"].to_pylist()]
    assert given == [names[i] for i in probs.argmax(axis=1)]
    rejects = Folder(f"{config.run_dir}/rejects/ingest-predict/new-rows")
    assert rejects.read_shard(2)["reason"].to_pylist() == ["empty"] * 3
    figures = folder.read_json("metrics.json")["student"]
    right = float(np.mean(probs.argmax(axis=1)[1:] == np.array(gold[1:])))
    assert (figures["rows"], figures["accuracy"]) == (46, pytest.approx(right))
    assert figures.keys() >= {"macro_f1", "ece", "per_class"}
    for words in (
        "student on predict/new-rows: 47 rows", "empty: 3", "Predictions, 47 rows",
        "mean confidence", "Rejected  3 rows", f"accuracy {right:.3f}", "predictions/new-rows",
    ):  # fmt: skip
        assert words in output
    assert "student on" not in run("predict", config)
    Path(path).rename(tmp_path / "b.jsonl")
    with pytest.raises(FingerprintError, match=r"(?s)predict.path: was .*another predict.name"):
        run("predict", make(**{**source, "path": str(tmp_path / "b.jsonl"), "name": "new-rows"}))


@pytest.mark.usefixtures("in_process")
def test_rows_ingested_again_from_changed_files_are_other_rows(
    tmp_path: Path, make: MakeConfig
) -> None:
    path = tmp_path / "growing.jsonl"
    config = make(path=written(path, 30, seed=1), text_column="body")
    run("predict", config)
    written(path, 40, seed=2)
    assert "30 rows" in run("predict", config)  # done is done
    shutil.rmtree(f"{config.run_dir}/predict/growing")
    with pytest.raises(FingerprintError, match=r"predictions/growing.*\n  files: was"):
        run("predict", config)
    shutil.rmtree(f"{config.run_dir}/predictions/growing")
    assert "Predictions, 40 rows" in run("predict", config)


@pytest.mark.usefixtures("in_process")
def test_a_corpus_without_usable_rows_is_an_error(tmp_path: Path, make: MakeConfig) -> None:
    pq.write_table(pa.table({"text": ["", " "]}), tmp_path / "empty.parquet")
    with pytest.raises(RejectLimitError, match="2 of 2 predict/empty rows are unusable"):
        run("predict", make(path=str(tmp_path / "empty.parquet")))


def test_a_killed_actor_is_replaced_and_its_shard_predicted_again(
    tmp_path: Path, make: MakeConfig
) -> None:
    with in_process():
        plain = predicted(make(name="undisturbed"))
    folder = predicted(make(name="killed"), DeadlyTracker("3", str(tmp_path / "died")))
    assert (tmp_path / "died").exists()
    assert folder.shards() == set(range(7))
    for shard in range(7):
        ours, theirs = folder.read_shard(shard), plain.read_shard(shard)
        assert ours.drop_columns("confidence").equals(theirs.drop_columns("confidence"))
    folder.delete_temporary()  # it may have died in the middle of its other shard
    assert not list(Path(folder.uri).glob(".*"))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "corpus"),
        ({"name": "Früh-2.b_c"}, "Früh-2.b_c"),
        ({"path": "data/messages/*.parquet"}, "messages"),
        ({"path": "s3://bucket/new rows/2024.jsonl.gz"}, "2024"),
        ({"path": ["a/b.csv", "c.csv"]}, "b"),
        ({"path": "datasets:org/ag_news", "dataset_args": {"split": "test"}}, "ag_news"),
        ({"path": "/data/May+June/"}, "May-June"),
    ],
)
def test_the_folder_is_named_after_the_path(
    make_config: MakeConfig, settings: dict[str, Any], name: str
) -> None:
    assert make_config(predict=settings).predict.folder == name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            ({"name": name}, f"predict.name: must be a plain directory name.*{name!r}")
            for name in ("../labels", "a/b", "..", ".hidden", "", "a b", "/tmp/x", "x\n")
        ),
        ({"path": "/*.csv"}, "cannot derive a directory name from path .*; set name"),
        ({"path": "corpus.csv"}, "'corpus' is reserved for the run's own corpus"),
        ({"path": "x.csv", "name": "corpus"}, "'corpus' is reserved for the run's own corpus"),
        ({"text_column": "body"}, "text_column describes how to read path, which is not set"),
        ({"replicas": [3, 1]}, r"replicas must be \[minimum, maximum\], not \[3, 1\]"),
    ],
)
def test_names_that_cannot_be_folders_and_settings_without_effect_are_refused(
    make_config: MakeConfig, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("\\n'", "\\\\n'")):
        make_config(predict=settings)
