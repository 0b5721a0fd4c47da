"""Folders write files atomically and name damaged ones."""

import _thread
import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pytest

from llkd.errors import FingerprintError, IncompleteError, StorageError
from llkd.store.folder import Folder
from llkd.store.manifest import (
    Manifest,
    begun,
    open_stage,
    read_manifest,
    require_complete,
    write_manifest,
)
from llkd.store.schema import shard_name, shard_number
from llkd.store.transfer import upload_folder
from tests.stores import check_folders_are_copied_whole

TABLE = pa.table({"row": [0, 1, 2], "text": ["a", "b", "ç"]})


def test_shards_round_trip(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "deep/er"))
    assert folder.shards() == set()
    folder.write_shard(7, TABLE)
    assert folder.shards() == {7}
    assert folder.read_shard(7).equals(TABLE)
    assert folder.read_shard(7, ["text"]).column_names == ["text"]
    assert folder.shard_rows(7) == 3


def test_the_same_over_a_uri(tmp_path: Path) -> None:
    folder = Folder(f"file://{tmp_path}/x")
    folder.write_shard(0, TABLE)
    assert Folder(str(tmp_path / "x")).read_shard(0).equals(TABLE)


def test_shard_names() -> None:
    assert shard_name(3) == "part-00003.parquet"
    assert [shard_number(n) for n in ("part-00003.parquet", "part-1234567.parquet")] == [3, 1234567]
    others = [
        "part-.parquet",
        "manifest.json",
        "part-3.csv",
        "part-3.parquet",
        "part-000003.parquet",
    ]
    others += ["part-0000².parquet", "part-0000٣.parquet", f"part-{'9' * 5000}.parquet"]
    assert [shard_number(name) for name in others] == [None] * len(others)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failing: str, number: int
) -> None:
    folder = Folder(str(tmp_path))
    folder.write_shard(0, TABLE)
    target = "llkd.store.folder.os.fsync" if failing == "fsync" else "pathlib.Path.replace"
    with (
        mock.patch(target, side_effect=OSError(number, os.strerror(number))),
        pytest.raises(StorageError, match=f"part-00000.*{os.strerror(number)}"),
    ):
        folder.write_shard(0, TABLE.slice(0, 1))
    assert folder.read_shard(0).num_rows == 3
    assert os.listdir(tmp_path) == ["part-00000.parquet"]


def test_leftovers_of_killed_writers_are_not_seen_and_can_be_cleared(tmp_path: Path) -> None:
    leftover = tmp_path / "labels/.part-00001.parquet.0123.tmp"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    assert Folder(str(leftover.parent)).shards() == set()
    Folder(str(tmp_path)).delete_temporary()
    assert not leftover.exists()


def test_damage_is_named(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_shard(0, TABLE)
    with pytest.raises(StorageError, match="lacks the columns"):
        folder.read_shard(0, ["nothing"])
    data = folder.read_bytes(shard_name(0))
    folder.write_bytes(shard_name(0), data[: len(data) // 2])
    with pytest.raises(StorageError, match=r"part-00000.parquet is damaged"):
        folder.read_shard(0)
    folder.write_bytes("x.json", b"{")
    with pytest.raises(StorageError, match=r"x.json is damaged"):
        folder.read_json("x.json")
    with pytest.raises(StorageError, match="Cannot read"):
        folder.read_bytes("missing")


def test_folders_are_copied_whole(tmp_path: Path) -> None:
    check_folders_are_copied_whole(tmp_path, Folder(str(tmp_path / "c")))


def test_manifest_names_the_setting_that_differs(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    first = Manifest("label", {"teacher.model": "a", "seed": 1}, "up")
    assert open_stage(folder, first) == first
    assert open_stage(folder, first) == first
    folder.write_bytes("part-00000.parquet", b"a result")
    with pytest.raises(FingerprintError, match=r'teacher.model: was "a", now "b"'):
        open_stage(folder, Manifest("label", {"teacher.model": "b", "seed": 1}, "up"))
    with pytest.raises(FingerprintError, match="earlier stage"):
        open_stage(folder, Manifest("label", {"teacher.model": "a", "seed": 1}, "other"))


def test_that_a_complete_stage_was_begun_is_told_without_a_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.write_json("manifest.json", {})
    assert not begun(folder)
    folder.write_json("checksums.json", {})
    monkeypatch.setattr(Folder, "_infos", lambda self: pytest.fail("it is listed"))
    assert begun(folder)


def test_manifest_tells_complete_from_begun(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    with pytest.raises(IncompleteError, match="has not been run"):
        require_complete(folder, "label")
    manifest = open_stage(folder, Manifest("label", {}, ""))
    with pytest.raises(IncompleteError, match="not complete"):
        require_complete(folder, "label")
    write_manifest(folder, manifest.finished({"rows": 3}))
    assert require_complete(folder, "label").results["rows"] == 3


def test_shards_without_manifest_and_other_versions_are_refused(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_shard(0, TABLE)
    with pytest.raises(FingerprintError, match="no manifest"):
        open_stage(folder, Manifest("label", {}, ""))
    folder.write_json("manifest.json", {"version": 99})
    with pytest.raises(FingerprintError, match="version 99"):
        read_manifest(folder)


def test_a_stage_that_left_nothing_binds_nobody_to_its_settings(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "labels"))
    wrong = open_stage(folder, Manifest("label", {"teacher.model": "misspelt"}, "up"))
    folder.write_json("settled.json", {"dtype": "float32"})
    right = Manifest("label", {"teacher.model": "model"}, "up")
    assert wrong != right
    assert open_stage(folder, right) == right
    assert not folder.exists("settled.json")  # it was settled for the other model


FULL_DISK = """
import resource, signal, sys
import pyarrow as pa
from llkd.errors import StorageError
from llkd.store.transfer import upload_folder
from llkd.store.folder import Folder
from pathlib import Path

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
folder = Folder(sys.argv[1])
folder.write_json("small.json", 1)
for write in (
    lambda: folder.write_shard(0, pa.table({"text": [str(hash(str(i))) for i in range(5000)]})),
    lambda: folder.write_json("large.json", list(range(5000))),
    lambda: upload_folder(Path(sys.argv[2]), folder.uri),
):
    try:
        write()
    except StorageError as error:
        print(error)
"""


def test_a_disk_that_takes_no_more_leaves_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/weights").write_bytes(b"x" * 9000)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "run", tmp_path / "source"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = ("part-00000.parquet", "large.json", "weights")
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        assert f"run/{name}: [Errno 27] File too large" in line
        assert "Free disk space" in line
        assert "run the same command again" in line
    assert os.listdir(tmp_path / "run") == ["small.json"]


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    folder = Folder(str(tmp_path / "run/labels"))
    with pytest.raises(StorageError, match=r"Cannot write .*run/labels/part-00000.parquet"):
        folder.write_shard(0, TABLE)
    assert folder.read_json_if_there("x.json") is None
    with pytest.raises(StorageError, match=r"Cannot list .*/run"):
        Folder(str(tmp_path / "run")).names()


def test_the_last_file_of_a_folder_comes_after_all_others(tmp_path: Path) -> None:
    for name in ("a", "m", "z"):
        (tmp_path / "from").mkdir(exist_ok=True)
        (tmp_path / "from" / name).write_text(name)
    written: list[str] = []
    with mock.patch.object(Folder, "write_bytes", lambda self, name, data: written.append(name)):
        upload_folder(tmp_path / "from", str(tmp_path / "to"), last="m")
    assert written == ["a", "z", "m"]


def test_an_interrupt_during_a_write_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def interrupted(path: Path, missing_ok: bool = False) -> None:
        _thread.interrupt_main()
        time.sleep(0.1)
        unlink(path, missing_ok=missing_ok)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "unlink", interrupted)
    # Which of the two is raised depends on whether the main thread waits, or has the result already.
    with pytest.raises((KeyboardInterrupt, StorageError)):
        Folder(str(tmp_path)).write_bytes("x", b"1")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
