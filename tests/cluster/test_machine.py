"""A choice by timing is made once per run: resuming must not change the number format."""

from pathlib import Path
from typing import Any

import pytest

from llkd.cluster.machine import choose_once
from llkd.config.run import TeacherConfig
from llkd.distill.precision import chosen_precision
from llkd.store.folder import Folder
from llkd.teacher.machine_arguments import with_machine_arguments
from tests.conftest import MakeConfig
from tests.fakes import KeywordTeacher

pytestmark = pytest.mark.usefixtures("local_ray")


class ChoosyTeacher(KeywordTeacher):
    @staticmethod
    def machine_arguments(teacher: TeacherConfig) -> dict[str, Any]:
        return {"dtype": "float32", "delay": 9.0}


def test_the_first_answer_stays(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    assert choose_once(folder, lambda: {"dtype": "float32"}, {"CPU": 1}) == {"dtype": "float32"}
    assert choose_once(folder, lambda: {"dtype": "bfloat16"}, {"CPU": 1}) == {"dtype": "float32"}


def test_the_config_goes_before_the_engines_choice(make_config: MakeConfig) -> None:
    engine = "tests.cluster.test_machine:ChoosyTeacher"
    config = make_config(teacher={"engine": engine, "engine_args": {"delay": 0.0}})
    teacher = with_machine_arguments(config, {"CPU": 1})
    assert teacher.engine_args == {"dtype": "float32", "delay": 0.0}
    plain = make_config()
    assert with_machine_arguments(plain, {"CPU": 1}) is plain.teacher


def test_precision_is_settled_for_all_later_stages(make_config: MakeConfig) -> None:
    config = make_config(student={"precision": "auto"})
    first = chosen_precision(config, {"CPU": 1})
    assert first in ("bfloat16", "float32")
    assert Folder(f"{config.run_dir}/epochs").read_json("settled.json") == {"precision": first}
    other = make_config(student={"precision": "float32" if first == "bfloat16" else "bfloat16"})
    assert chosen_precision(other, {"CPU": 1}) == first
