"""A choice by timing is made once a run: resuming must not change the number format."""

from pathlib import Path
from typing import Any

import pytest

from llkd.config import TeacherConfig
from llkd.settled import settle, settled_precision, settled_teacher
from llkd.storage import Folder
from tests.conftest import MakeConfig
from tests.fakes import KeywordTeacher

pytestmark = pytest.mark.usefixtures("local_ray")


class ChoosyTeacher(KeywordTeacher):
    @staticmethod
    def machine_arguments(teacher: TeacherConfig) -> dict[str, Any]:
        return {"dtype": "float32", "delay": 9.0}


def test_the_first_answer_stays(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert settle(folder, lambda: {"dtype": "float32"}, {"CPU": 1}) == {"dtype": "float32"}
    assert settle(folder, lambda: {"dtype": "bfloat16"}, {"CPU": 1}) == {"dtype": "float32"}


def test_the_config_goes_before_the_engines_choice(make_config: MakeConfig) -> None:
    engine = "tests.test_settled:ChoosyTeacher"
    config = make_config(teacher={"engine": engine, "engine_args": {"delay": 0.0}})
    teacher = settled_teacher(config, {"CPU": 1})
    assert teacher.engine_args == {"dtype": "float32", "delay": 0.0}
    plain = make_config()
    assert settled_teacher(plain, {"CPU": 1}) is plain.teacher


def test_precision_is_settled_for_all_later_stages(make_config: MakeConfig) -> None:
    config = make_config(student={"precision": "auto"})
    first = settled_precision(config, {"CPU": 1})
    assert first in ("bfloat16", "float32")
    assert Folder(f"{config.run_dir}/epochs").read_json("settled.json") == {"precision": first}
    other = make_config(student={"precision": "float32" if first == "bfloat16" else "bfloat16"})
    assert settled_precision(other, {"CPU": 1}) == first
