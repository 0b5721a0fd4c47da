"""The real vLLM in a pool of actors, one of which is killed while it labels."""

import threading
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from llkd.config_file import absolute_paths, load_config
from llkd.schema import RunLayout
from llkd.stages.ingest import ingest
from llkd.stages.label import label
from llkd.storage import Folder
from tests.conftest import SilentTracker
from tests.demo import prepared

ROWS, SHARDS = 48, 3


def engines() -> list[psutil.Process]:
    """vLLM's engine processes on this machine that descend from this test's Ray."""
    found = []
    for process in psutil.process_iter(["cmdline", "name"]):
        said = " ".join([process.info["name"] or "", *(process.info["cmdline"] or [])])
        if "EngineCore" in said:
            found.append(process)
    return found


def labelling_actor() -> psutil.Process:
    for process in psutil.process_iter(["cmdline"]):
        if "MapWorker" in " ".join(process.info["cmdline"] or []):
            return process
    raise AssertionError("no actor labels")


@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("local_ray")
def test_a_killed_actor_leaves_no_engine_and_loses_no_row(
    tmp_path: Path, tracker: SilentTracker
) -> None:
    table = pq.read_table(prepared() / "bbc/corpus.parquet").slice(0, ROWS)
    pq.write_table(table, tmp_path / "corpus.parquet")
    before = {process.pid for process in engines()}
    config = absolute_paths(
        load_config(
            "jobs/configs/bbc.yaml",
            [
                f"run_dir={tmp_path}/run", f"corpus.path={tmp_path}/corpus.parquet", "test=null",
                f"corpus.rows_per_shard={ROWS // SHARDS}", "teacher.resources={CPU: 1}",
                "teacher.engine=tests.fakes:SeparateVLLM",
            ],
        )
    )  # fmt: skip
    ingest(config, "corpus", tracker)
    labels = Folder(RunLayout(config.run_dir).labels("corpus"))
    manifests: list[object] = []
    worker = threading.Thread(
        target=lambda: manifests.append(label(config, ["corpus"], tracker)["corpus"]), daemon=True
    )
    worker.start()
    deadline = time.monotonic() + 600
    while len(labels.shards()) < 1:
        assert worker.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first = [process for process in engines() if process.pid not in before]
    assert len(first) == 1
    labelling_actor().kill()
    psutil.wait_procs(first, timeout=30)
    assert not first[0].is_running()
    worker.join(timeout=600)
    assert manifests
    assert [labels.read_shard(shard).num_rows for shard in range(SHARDS)] == [
        ROWS // SHARDS
    ] * SHARDS
    deadline = time.monotonic() + 60
    while [process for process in engines() if process.pid not in before]:
        assert time.monotonic() < deadline
        time.sleep(0.5)
