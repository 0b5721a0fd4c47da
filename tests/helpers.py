"""Helpers of several packages: run stages and jobs, wait for events, read labels."""

import contextlib
import io
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from llkd.config.run import RunConfig
from llkd.config.student import StudentConfig
from llkd.pipeline import run_stage
from llkd.store.arrays import matrix
from llkd.store.folder import Folder

ROOT = Path(__file__).resolve().parents[1]

SECRETS = dict.fromkeys(
    ("OPENAI_API_KEY", "HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"),
    "canary" * 10,
)
"""Secrets in the environment of every job; no file or log may contain them."""


def run(stage: str, config: RunConfig, width: int = 120) -> str:
    """Run a stage in this process; returns what it prints."""
    screen = io.StringIO()
    run_stage(stage, config, Console(file=screen, width=width))
    return screen.getvalue()


def written(path: Path, config: RunConfig) -> Path:
    """Write a config file without resources, which the jobs then derive."""
    settings = config.model_dump(mode="json")
    settings["teacher"].pop("resources")
    settings["student"].pop("resources")
    path.write_text(yaml.safe_dump(settings))
    return path


def environment(**extra: str) -> dict[str, str]:
    """The environment of a job with its own Ray."""
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return {**env, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **SECRETS, **extra}


@contextlib.contextmanager
def started(job: str, *arguments: object, **extra: str) -> Iterator[subprocess.Popen[str]]:
    """Start a job in its own process, which is killed at the end of the block if it still runs.

    Args:
        job: file name in jobs/, without its suffix.
        arguments: of the command line.
        extra: environment variables.
    """
    process = subprocess.Popen(
        [sys.executable, f"jobs/{job}.py", *map(str, arguments)], cwd=ROOT, env=environment(**extra),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()  # descendants may still hold the other end


def ended(process: subprocess.Popen[str], status: int = 0) -> str:
    """Wait for a job's end; returns its output."""
    output, _ = process.communicate()
    assert process.returncode == status, output
    return output


def run_job(job: str, *arguments: object, status: int = 0, **extra: str) -> str:
    """Run a job to its end; returns its output."""
    with started(job, *arguments, **extra) as process:
        return ended(process, status)


def wait_until(
    condition: Callable[[], bool],
    process: subprocess.Popen[str] | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> None:
    """Wait for an event. Only the time limit of the test ends the wait.

    Args:
        condition: whether it has occurred.
        process: fails the test if it ends before the event.
        meanwhile: called between two checks.
    """
    while not condition():
        if meanwhile is not None:
            meanwhile()
        if process is not None and process.poll() is not None and not condition():
            raise AssertionError(f"exit status {process.returncode}: {process.communicate()[0]}")
        time.sleep(0.05)


def cut(path: Path) -> None:
    """Truncate a file."""
    path.write_bytes(path.read_bytes()[:-9])


def logprobs_of(uri: Path | str) -> dict[int, np.ndarray]:
    """The log-probabilities of each shard of a folder of labels, by shard."""
    folder = Folder(str(uri))
    return {s: matrix(folder.read_shard(s)["logprobs"]) for s in sorted(folder.shards())}


def calls_in(path: Path) -> Counter[str]:
    """Number of times `KeywordTeacher` labelled each text, by its hash, from the file `calls`."""
    return Counter(line.split()[0] for line in path.read_text().splitlines())


def student_of(student: StudentConfig, labels: Sequence[str], dropout: bool = True) -> Any:
    """The model of a student, with the same new weights each time."""
    import torch

    from llkd.student.model import load_student

    torch.manual_seed(0)
    _, model = load_student(student, labels)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and not dropout:
            module.p = 0.0  # for good: a trainer turns dropout on
    return model
