"""An exported run: cards, labelled rows and ONNX, read by the libraries of their users."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llkd.config.load import parse_config
from llkd.config.run import RunConfig
from llkd.errors import ExportError
from llkd.results import export as publish
from llkd.results import onnx
from llkd.results.onnx import write_onnx
from llkd.results.trackers import event_file
from llkd.store.arrays import matrix
from llkd.store.folder import Folder
from llkd.store.manifest import MANIFEST
from llkd.store.schema import RunLayout
from llkd.teacher.calibrate import calibrate
from tests.conftest import MadeRun, MakeConfig
from tests.helpers import run

pytestmark = pytest.mark.usefixtures("local_ray", "in_process", "no_report")

WHOLE = {"onnx": True, "distribution": True, "gold": True, "license": "mit", "language": "en",
         "model_repo": "me/topics", "dataset_repo": "me/topics-labelled"}  # fmt: skip


@pytest.fixture(scope="module")
def make(finished_run: MadeRun, tmp_path_factory: pytest.TempPathFactory) -> MakeConfig:
    """Configs of one finished run, whose teacher refused a few rows, with a section `export`."""
    copy = finished_run.copy(tmp_path_factory.mktemp("finished") / "run")
    return lambda **export: copy.config(export=export)


@pytest.fixture(scope="module")
def exported(make: MakeConfig) -> RunConfig:
    """A config whose export is complete."""
    config = make(**WHOLE)
    output = run("export", config)
    assert "model: 6 files" in output
    assert "dataset: 8 files" in output
    return config


def folder_of(exported: RunConfig, name: str = "") -> Path:
    return Path(exported.run_dir, "export", name)


def labelled(config: RunConfig) -> tuple[list[str], list[str], np.ndarray, list[int]]:
    """(texts, ids, calibrated distributions, gold) of the labelled rows."""
    layout, calibration = RunLayout(config.run_dir), calibrate(config)
    texts, ids, probs, gold = [], [], [], []
    for shard in range(7):
        table = Folder(layout.labels("corpus")).read_shard(shard)
        rows = Folder(layout.rows("corpus")).read_shard(shard).take(table["row"])
        texts += rows["text"].to_pylist()
        ids += rows["id"].to_pylist()
        gold += rows["gold"].to_pylist()
        probs.append(calibration.apply(matrix(table["logprobs"])))
    return texts, ids, np.concatenate(probs), gold


def test_datasets_loads_the_labelled_rows_with_their_features(
    exported: RunConfig, tmp_path: Path
) -> None:
    from datasets import ClassLabel, List, Value, load_dataset

    folder = folder_of(exported, "dataset")
    rows = load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    names = exported.task.label_names
    assert rows.features["label"] == rows.features["gold"] == ClassLabel(names=names)
    assert rows.features["confidence"] == Value("float32")
    assert rows.features["probs"] == List(Value("float32"), length=3)
    assert list(rows.features) == ["text", "id", "label", "confidence", "probs", "gold"]
    texts, ids, probs_nc, gold = labelled(exported)
    assert len(texts) == 409
    assert (rows["text"][:], rows["id"][:], rows["gold"][:]) == (texts, ids, gold)
    assert rows["label"][:] == probs_nc.argmax(axis=1).tolist()
    assert np.array(rows["confidence"]) == pytest.approx(probs_nc.max(axis=1))
    assert np.array(rows["probs"]) == pytest.approx(probs_nc)


def test_the_cards_show_the_metrics(exported: RunConfig) -> None:
    from huggingface_hub import DatasetCard, ModelCard

    metrics = Folder(exported.run_dir).read_json("metrics.json")
    student = ModelCard.load(folder_of(exported, "model/README.md"))
    values = {one.metric_type: one.metric_value for one in student.data.eval_results}
    measured = metrics["student"]["test"]
    assert values == {
        "accuracy": round(measured["accuracy"], 4), "f1": round(measured["macro_f1"], 4)
    }  # fmt: skip
    found = student.data.to_dict()
    assert found["datasets"] == ["me/topics-labelled"]
    assert (found["license"], found["language"]) == ("mit", "en")
    assert (found["pipeline_tag"], found["library_name"]) == ("text-classification", "transformers")
    assert "base_model" not in found  # it is a local directory
    assert f"| student | {measured['accuracy']:.3f} |" in student.text
    rows = DatasetCard.load(folder_of(exported, "dataset/README.md"))
    # The origin of a custom engine's labels is unknown.
    assert "annotations_creators" not in rows.data.to_dict()
    assert f"| {metrics['teacher']['corpus']['accuracy']:.3f} |" in rows.text
    assert "409 texts" in rows.text
    texts, *_ = labelled(exported)
    assert not any(text in card.text for text in texts for card in (student, rows))
    before = ModelCard.load(Path(exported.run_dir, "student/README.md"))
    assert before.data.eval_results is None
    assert "The student was not measured when this card was written" in before.text


def test_the_cards_code_for_serving_without_torch_works(exported: RunConfig) -> None:
    from transformers import pipeline

    folder = folder_of(exported, "model")
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    texts = ["goal match the team", "phone chip " * 30, "shares"]
    code = blocks[1].replace('["a text", "another one"]', repr(texts))
    assert repr(texts) in code
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['torch'] = None\n{code}\nprint(labels)"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    classify = pipeline("text-classification", model=str(folder), truncation=True)
    expected = [classify(text)[0]["label"] for text in texts]
    assert done.stdout.strip() == repr(expected), done.stderr


def export(config: RunConfig) -> list[str]:
    """Export without a job; returns the lines printed."""
    lines: list[str] = []
    publish.publish(config, lines.append)
    return lines


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_an_export_is_made_once_and_replaced_as_a_whole(
    make: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "topics"
    config = make(folder=str(folder))
    export(config)
    before = times(folder)
    export(config)
    assert times(folder) == before
    (folder / "dataset/data/train-00003-of-00007.parquet").unlink()
    export(config)
    assert {path.name for path in times(folder)} == {path.name for path in before}

    whole = times(folder)
    other = make(folder=str(folder), license="apache-2.0")
    with monkeypatch.context() as broken:
        broken.setattr(publish, "dataset_card", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(other)
    assert times(folder) == whole
    rows = times(tmp_path / "topics.incomplete/dataset")
    assert len(rows) == 7
    export(other)
    assert "license: apache-2.0" in (folder / "dataset/README.md").read_text()
    kept = times(folder / "dataset")
    for path, when in rows.items():
        assert kept[folder / "dataset/data" / path.name] == when
    assert [path.name for path in tmp_path.iterdir()] == ["topics"]


def test_on_a_store_without_renames_the_manifest_comes_last(
    make: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "topics"
    export(make(folder=folder.as_uri()))
    assert Folder(str(folder)).read_json(MANIFEST)["complete"]
    with monkeypatch.context() as broken:
        broken.setattr(publish, "dataset_card", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export(make(folder=folder.as_uri(), license="mit"))
    assert not Folder(str(folder)).read_json(MANIFEST)["complete"]
    export(make(folder=folder.as_uri(), dataset=False))
    assert {path.name for path in folder.iterdir()} == {"model", MANIFEST}


@pytest.mark.parametrize("name", ["student", "corpus", "", "export/model"])
def test_other_folders_are_never_replaced(exported: RunConfig, make: MakeConfig, name: str) -> None:
    folder = Path(exported.run_dir, name)
    before = times(folder)
    with pytest.raises(ExportError, match="is not an export"):
        export(make(folder=str(folder)))
    assert times(folder) == before


def test_files_added_or_changed_by_hand_are_never_lost(
    exported: RunConfig, make: MakeConfig, tmp_path: Path
) -> None:
    (tmp_path / "mine/.git").mkdir(parents=True)
    (tmp_path / "mine/.git/config").write_text("[core]")
    with pytest.raises(ExportError, match="is not an export"):
        export(make(folder=str(tmp_path / "mine")))
    with pytest.raises(ExportError, match="is a whole bucket"):
        export(make(folder="s3://bucket"))

    folder = tmp_path / "copy"
    shutil.copytree(folder_of(exported), folder)
    for name, content in (("model/NOTES.txt", "x"), ("model/README.md", "my own words")):
        file = folder / name
        original = file.read_bytes() if file.exists() else None
        file.write_text(content)
        with pytest.raises(ExportError, match=name):
            export(make(folder=str(folder)))
        assert file.read_text() == content
        file.unlink() if original is None else file.write_bytes(original)


def test_what_is_pushed(make: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[tuple[Any, ...]] = []

    def push(folder: Path, *arguments: Any) -> str:
        pushed.append((folder.name, (folder / "README.md").exists(), *arguments))
        return "https://hub/commit"

    monkeypatch.setattr(publish, "push_folder", push)
    folder = str(tmp_path / "topics")
    wanted = {"folder": folder, "model_repo": "me/x", "dataset_repo": "me/y", "private": False}
    assert export(make(**wanted)) == []
    assert pushed == []
    lines = export(make(**wanted, push_to_hub=True, revision="v2"))
    assert pushed == [
        ("model", True, "me/x", "model", False, "v2"),
        ("dataset", True, "me/y", "dataset", False, "v2"),
    ]
    assert lines == [f"pushed {kind}: https://hub/commit" for kind in ("model", "dataset")]


@pytest.mark.usefixtures("exported")
def test_export_and_trackers_change_no_fingerprint(make: MakeConfig) -> None:
    config = make(**WHOLE, private=False)
    raw = config.model_dump(mode="json")
    raw["tracking"] = {"run_name": "other", "experiment": "x"}
    student = Path(config.run_dir, "student")
    before = times(student)
    run("run", parse_config(raw))
    assert times(student) == before
    events = {path.name for path in Path(config.run_dir, "tensorboard").iterdir()}
    assert events == {event_file(0), event_file(1), event_file(2)}


def tokenizer_of(student: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def test_a_decoder_is_exported_to_onnx(tiny_student: str, tmp_path: Path) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    tokenizer = tokenizer_of(tiny_student)
    torch.manual_seed(0)
    model = Qwen2ForSequenceClassification(
        Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=64, num_labels=3, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    torch.nn.init.normal_(model.score.weight)  # by default all labels are equally probable
    texts = ["goal", "the phone of a team", "market " * 30]
    assert write_onnx(tokenizer, model, tmp_path / "onnx/m.onnx", texts, 24) < 1e-5


def test_a_model_that_differs_or_cannot_be_exported_is_refused(
    tiny_student: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    tokenizer = tokenizer_of(tiny_student)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_student, num_labels=3)
    write = onnx._write

    def write_and_change(*arguments: Any) -> Any:
        names = write(*arguments)
        with torch.no_grad():
            model.classifier.bias += torch.tensor([0.01, 0.0, 0.0])
        return names

    arguments = (tokenizer, model, tmp_path / "m.onnx", ["goal", "a phone"], 32)
    monkeypatch.setattr(onnx, "_write", write_and_change)
    with pytest.raises(ExportError, match=r"differ: its probabilities by 2\.\de-03"):
        write_onnx(*arguments)
    monkeypatch.setattr(onnx, "_write", write)
    monkeypatch.setattr(
        model, "forward", lambda **tokens: print(tokens["input_ids"].max().item() / 0)
    )
    with pytest.raises(ExportError, match="cannot be exported to ONNX"):
        write_onnx(*arguments)
