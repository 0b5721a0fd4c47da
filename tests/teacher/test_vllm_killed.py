"""The real vLLM in a pool of actors: an engine is killed while it starts, an actor as it labels."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow.parquet as pq
import pytest

from llkd.config.load import load_config
from llkd.errors import TeacherError
from llkd.ingest.stage import ingest
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout
from llkd.teacher.engines.vllm import VLLMEngine
from llkd.teacher.stage import label
from tests.conftest import SilentTracker
from tests.demo import prepared

ROWS, SHARDS = 48, 3


class Engines:
    """vLLM's engine processes of this test's Ray; other tests may run engines at the same time."""

    def __init__(self) -> None:
        self._seen: set[psutil.Process] = set()

    def alive(self) -> list[psutil.Process]:
        """The running ones, even if the actor that started them was killed."""
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "EngineCore" in " ".join([process.name(), *process.cmdline()]):
                    self._seen.add(process)
        return [process for process in self._seen if _runs(process)]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def labelling_actor() -> psutil.Process:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "MapWorker" in " ".join(process.cmdline()):
                return process
    raise AssertionError("no actor labels")


ENDED = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"


class LostEngineError(Exception):
    """As vLLM raises it of an engine that was ready."""


def end_by(end: int) -> None:
    """End by a signal if it is below 0, else with that exit code."""
    time.sleep(0.3)
    if end < 0:
        os.kill(os.getpid(), -end)
    os._exit(end)


@pytest.mark.parametrize(
    ("ends", "error", "raised"),
    [
        ([-signal.SIGKILL], RuntimeError(ENDED), RuntimeError),
        ([-signal.SIGKILL, 0], RuntimeError(ENDED), RuntimeError),
        ([], LostEngineError(), RuntimeError),
        ([1], RuntimeError(ENDED), TeacherError),
        ([], RuntimeError(ENDED), TeacherError),
        ([1, -signal.SIGTERM], RuntimeError(ENDED), TeacherError),  # the other was told to end
        ([-signal.SIGTERM], ValueError("no such dtype"), TeacherError),
    ],
)
def test_an_engine_that_was_killed_is_told_from_a_model_that_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, ends: list[int], error: Exception, raised: type[Exception]
) -> None:
    """The pool retries after every error that is not an LLKDError."""

    def start(**arguments: object) -> None:
        context = multiprocessing.get_context("fork")
        for rank, end in enumerate(ends):
            context.Process(target=end_by, args=(end,), name=f"EngineCore_DP{rank}").start()
        time.sleep(0.2)  # as with vLLM, the exit code is there a little later
        raise error

    monkeypatch.setattr("llkd.teacher.engines.vllm.prepare_platform", lambda gpus: None)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=start))
    exceptions = SimpleNamespace(EngineDeadError=LostEngineError)
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.exceptions", exceptions)
    config = load_config("jobs/configs/bbc.yaml")
    with pytest.raises(raised, match="vLLM"):
        VLLMEngine(config.teacher, config.task)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_killed_engine_is_started_again_and_a_killed_actor_leaves_none_and_loses_no_row(
    tmp_path: Path, tracker: SilentTracker
) -> None:
    table = pq.read_table(prepared() / "bbc/corpus.parquet").slice(0, ROWS)
    pq.write_table(table, tmp_path / "corpus.parquet")
    engines = Engines()
    config = load_config(
        "jobs/configs/bbc.yaml",
        [
            f"run_dir={tmp_path}/run", f"corpus.path={tmp_path}/corpus.parquet", "test=null",
            f"corpus.rows_per_shard={ROWS // SHARDS}", "teacher.resources={CPU: 1}",
            "teacher.engine=tests.fakes:SeparateVLLM",
        ],
    )  # fmt: skip
    ingest(config, "corpus", tracker)
    labels = Folder(RunLayout(config.run_dir).labels("corpus"))
    manifests: list[object] = []
    worker = threading.Thread(
        target=lambda: manifests.append(label(config, ["corpus"], tracker)["corpus"]), daemon=True
    )
    worker.start()
    while not (starting := engines.alive()):
        assert worker.is_alive()
        time.sleep(0.05)
    starting[0].kill()
    while _runs(starting[0]):
        time.sleep(0.05)
    assert labels.shards() == set()
    while len(labels.shards()) < 1:
        assert worker.is_alive()
        time.sleep(0.05)
    first = engines.alive()
    assert len(first) == 1
    labelling_actor().kill()
    while _runs(first[0]):
        time.sleep(0.05)
    while worker.is_alive():
        engines.alive()
        time.sleep(0.2)
    assert manifests
    assert [labels.read_shard(shard).num_rows for shard in range(SHARDS)] == [
        ROWS // SHARDS
    ] * SHARDS
    while engines.alive():
        time.sleep(0.2)
