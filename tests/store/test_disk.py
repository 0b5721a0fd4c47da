"""A real full file system and a real read-only one, during a run."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llkd.config.run import RunConfig
from llkd.errors import LLKDError, StorageError
from llkd.ingest.stage import ingest
from llkd.store.folder import Folder
from llkd.teacher.stage import label
from tests.conftest import MakeConfig, SilentTracker
from tests.helpers import logprobs_of, wait_until
from tests.in_process import in_process


class Disk:
    """A file system in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def remount(self, *options: str) -> None:
        """Mount it again with other options."""
        subprocess.run(["mount", "-o", f"remount,{','.join(options)}", self.path], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "llkd", path], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("only root may mount a file system")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def config(disk: Disk, make_config: MakeConfig) -> RunConfig:
    return make_config(run_dir=str(disk.path / "run"), corpus={"rows_per_shard": 20}, test=None)


def check_it_goes_on(config: RunConfig, make_config: MakeConfig, tmp_path: Path) -> None:
    """The same stages now succeed, with the labels of an undisturbed run."""
    plain = make_config(run_dir=str(tmp_path / "plain"), corpus={"rows_per_shard": 20}, test=None)
    with in_process():
        for each in (config, plain):
            ingest(each, "corpus", SilentTracker())
            label(each, ["corpus"], SilentTracker())
    ours, theirs = (logprobs_of(f"{each.run_dir}/labels") for each in (config, plain))
    assert ours.keys() == theirs.keys() == set(range(21))
    assert all(np.array_equal(ours[shard], theirs[shard]) for shard in theirs)
    assert not list(Path(config.run_dir).rglob(".*.tmp"))


def test_a_full_disk_ends_the_stage_and_the_run_goes_on_when_there_is_space(
    local_ray: None, disk: Disk, config: RunConfig, make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match="No space left on device"):
        ingest(config, "corpus", SilentTracker())
    assert 0 < len(Folder(f"{config.run_dir}/corpus").shards()) < 21
    wait_until(lambda: not list(Path(config.run_dir).rglob(".*.tmp")))  # tasks that still write
    with pytest.raises(StorageError, match="Free disk space"):
        Folder(config.run_dir).write_bytes("big", bytes(1 << 20))
    assert not list(Path(config.run_dir).glob(".big*"))
    disk.remount("size=16m")
    check_it_goes_on(config, make_config, tmp_path)


def test_a_disk_that_becomes_read_only_ends_the_stage_and_the_run_goes_on_afterwards(
    local_ray: None, disk: Disk, config: RunConfig, make_config: MakeConfig, tmp_path: Path
) -> None:
    disk.remount("size=16m")
    ingest(config, "corpus", SilentTracker())
    disk.remount("ro")
    with pytest.raises(LLKDError, match="Read-only file system"):
        label(config, ["corpus"], SilentTracker())
    disk.remount("rw")
    check_it_goes_on(config, make_config, tmp_path)
