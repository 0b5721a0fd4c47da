"""Model directories are checked before any work starts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llkd.config.run import TeacherConfig
from llkd.config.student import StudentConfig
from llkd.errors import ConfigError, LLKDError, StudentError
from llkd.preflight import require_inputs
from llkd.store.model_files import require_model
from llkd.student.model import load_student, require_loadable
from llkd.teacher.engine import require_teacher
from tests.conftest import MakeConfig

WEIGHTS = "model.safetensors"


def without(*patterns: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return spoil


def cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def empty(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "pytorch_model.bin")


def indexed(folder: Path) -> None:
    index = {"weight_map": {"a": WEIGHTS, "b": "model-2.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def bad_index(folder: Path) -> None:
    (folder / f"{WEIGHTS}.index.json").write_text("{")


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no directory": (shutil.rmtree, "the model directory .*copy does not exist"),
    "no config": (without("config.json"), "copy holds no config.json"),
    "no tokenizer": (without("tokenizer*", "vocab*"), "copy holds no tokenizer"),
    "no weights": (without("*.safetensors"), "copy holds no weights"),
    "weights cut short": (cut, "copy/model.safetensors is missing or damaged .*again"),
    "empty weights": (empty, "copy/model.safetensors is missing or damaged"),
    "a part missing": (indexed, "copy/model-2.safetensors is missing or damaged"),
    "a damaged index": (bad_index, "copy/model.safetensors.index.json is damaged"),
    "pickled weights": (pickled, "only as pytorch_model.bin, a pickle that can run code.*save_pretrained"),
}  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path, tiny_student: str) -> Path:
    return Path(shutil.copytree(tiny_student, tmp_path / "copy"))


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
def test_a_directory_that_is_no_model_is_told_for_teacher_and_student(
    copy: Path, make_config: MakeConfig, spoil: Callable[[Path], None], message: str
) -> None:
    teacher = {"engine": "transformers", "model": str(copy)}
    require_model(str(copy), "x")
    require_inputs("run", make_config(teacher=teacher, student={"model": str(copy)}))
    spoil(copy)
    with pytest.raises(ConfigError, match=f"teacher.model: .*{message}"):
        require_inputs("run", make_config(teacher=teacher))
    with pytest.raises(ConfigError, match=f"student.model: .*{message}"):
        require_inputs("run", make_config(student={"model": str(copy)}))
    with pytest.raises(LLKDError):  # or else it loads what it should not
        require_model(str(copy), "x")


def test_hub_names_and_other_engines_are_not_looked_at(copy: Path) -> None:
    pickled(copy)
    require_model("some/model", "x")
    require_teacher(TeacherConfig(engine="openai", model=str(copy)))
    require_teacher(TeacherConfig(model=str(copy), engine_args={"load_format": "pt"}))


def test_an_adapter_that_is_pickled_is_refused(copy: Path) -> None:
    pickled(copy)
    with pytest.raises(ConfigError, match=r"teacher.lora: .*a pickle"):
        require_teacher(TeacherConfig(model="some/model", lora=str(copy)))


@pytest.mark.parametrize("spoil", [cut, empty, pickled, without(WEIGHTS)])
def test_weights_that_cannot_be_loaded_are_a_typed_error(
    copy: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(copy)
    with pytest.raises(StudentError, match="student.model: cannot load"):
        load_student(StudentConfig(model=str(copy)), ["a", "b"])


def test_a_models_own_code_is_not_run(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a prompt offer to run it."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (copy / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}')
    (copy / "own.py").write_text(f"open({str(tmp_path / 'hacked')!r}, 'w')\nclass C: pass\n")
    for load in (require_loadable, lambda student: load_student(student, ["a", "b"])):
        with pytest.raises(StudentError, match="student.model: cannot load"):
            load(StudentConfig(model=str(copy)))
    assert not (tmp_path / "hacked").exists()
