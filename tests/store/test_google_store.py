"""gs:// behaves like a disk, although its listings contain no folders."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from llkd.cluster.integrity import close_stage
from llkd.config.sources import CorpusConfig
from llkd.errors import BusyError, DamageError, ExportError, StorageError
from llkd.ingest.files import list_files
from llkd.ingest.sources import check_columns, read_rows
from llkd.repair import reopen_damaged
from llkd.results.export import _Place, files_under
from llkd.store.folder import Folder
from llkd.store.lock import LEASE, Lease
from llkd.store.manifest import Manifest, begun
from llkd.store.schema import shard_name
from llkd.student.checkpoints import delete_checkpoints, last_checkpoint, store_checkpoint
from tests.google_store import google_store
from tests.stores import (
    check_folders_are_copied_whole,
    check_names_are_taken_as_they_are,
    check_what_is_there_and_what_is_not,
)

TABLE = pa.table({"row": [0, 1, 2], "text": ["a", "b", "ç"]})


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("google") / "requests.log"


@pytest.fixture(scope="module")
def bucket(log: Path) -> Iterator[str]:
    with google_store(log) as uri:
        yield uri


@pytest.fixture
def folder(bucket: str, request: pytest.FixtureRequest) -> Folder:
    """An empty folder of the test."""
    return Folder(f"{bucket}/{request.node.name}/labels")


def test_what_is_there_and_what_is_not(folder: Folder) -> None:
    check_what_is_there_and_what_is_not(folder)
    assert folder.read_json_if_there("x.json") is None
    with pytest.raises(DamageError, match="labels/x: it does not exist"):
        folder.read_bytes("x")
    folder.write_bytes(".hidden", b"12")
    folder.write_bytes(".hid/y", b"")
    folder.write_bytes("deep/er/y", b"")
    assert folder.names() == ["deep"]


def test_names_are_taken_as_they_are(folder: Folder) -> None:
    check_names_are_taken_as_they_are(folder)


def test_a_file_is_read_by_one_request(folder: Folder, log: Path) -> None:
    folder.write_bytes("x", b"12")
    before = log.read_text()
    assert folder.read_bytes("x") == b"12"
    asked = log.read_text().removeprefix(before).splitlines()
    assert len([line for line in asked if '"GET ' in line]) == 1


def test_a_folder_whose_name_begins_another_is_not_that_one(folder: Folder) -> None:
    other = Folder(f"{folder.uri}-of-others")
    other.write_bytes("x", b"")
    assert folder.names() == []
    folder.delete()
    assert other.names() == ["x"]


def test_a_lost_and_a_changed_shard_are_found(folder: Folder) -> None:
    crcs = {shard_name(shard): folder.write_shard(shard, TABLE) for shard in range(4)}
    close_stage(folder, Manifest("label", {}, "").finished({"rows": [3] * 4}), crcs)
    assert folder.shards() == {0, 1, 2, 3}
    assert folder.read_shard(2).equals(TABLE)
    assert (folder.shard_rows(2), folder.crc32(shard_name(2))) == (3, crcs[shard_name(2)])
    assert not reopen_damaged(folder, "labels", lambda line: None)
    folder.write_bytes(shard_name(1), folder.read_bytes(shard_name(1))[:-1])
    folder.delete_file(shard_name(3))
    assert reopen_damaged(folder, "labels", lambda line: None)
    assert folder.shards() == {0, 2}


def test_folders_are_copied_whole(tmp_path: Path, folder: Folder) -> None:
    check_folders_are_copied_whole(tmp_path, folder)
    assert files_under(folder.uri) == {"b/two": 1, "one": 1}


def test_checkpoints_are_found_and_those_not_kept_deleted(tmp_path: Path, folder: Folder) -> None:
    (tmp_path / "weights").write_text("12")
    (tmp_path / "state.json").write_text('{"sizes": {"weights": 2}}')
    assert not begun(folder)
    assert last_checkpoint(folder) is None
    for epoch in range(3):
        store_checkpoint(tmp_path, folder, f"epoch-{epoch:04d}")
    assert begun(folder)
    assert last_checkpoint(folder) == "epoch-0002"
    delete_checkpoints(folder, {"epoch-0001"})
    assert folder.names() == ["epoch-0001"]


def test_a_job_at_work_keeps_others_out(folder: Folder) -> None:
    first, second = Lease(folder.uri), Lease(folder.uri)
    first.take()
    with pytest.raises(BusyError, match="in use by process"):
        second.take()
    first.renew()
    assert folder.names() == []
    first.give_back()
    assert Folder(f"{folder.uri}/{LEASE}").files() == {}


def test_an_export_replaces_no_folder_of_others(folder: Folder) -> None:
    assert _Place(folder.uri)._manifest(folder.uri) is None
    folder.write_bytes("theirs/x", b"1")
    with pytest.raises(ExportError, match="is not an export"):
        _Place(folder.uri)._manifest(folder.uri)


def test_a_corpus_is_found_by_a_glob_and_read(folder: Folder) -> None:
    for name in ("b/1.jsonl", "a/2.jsonl", "a/other.txt"):
        folder.write_bytes(name, json.dumps({"text": name}).encode())
    source = CorpusConfig(path=f"{folder.uri}/*/?.jsonl")
    files = list_files(source, "corpus")
    assert [file.uri.removeprefix(folder.uri) for file in files] == ["/a/2.jsonl", "/b/1.jsonl"]
    read = [row.text for file in files for row in read_rows(file, source, 0, 1)]
    assert read == ["a/2.jsonl", "b/1.jsonl"]
    check_columns(files[0], source, "corpus")
    (whole,) = list_files(CorpusConfig(path=f"{folder.uri}/b/1.jsonl"), "corpus")
    assert whole == files[1]


def test_a_bucket_that_is_not_there_is_told(bucket: str) -> None:
    nowhere = Folder(f"{bucket}-of-nobody/run")
    with pytest.raises(StorageError, match="Cannot write gs://anonymous@bucket-of-nobody/run/x"):
        nowhere.write_bytes("x", b"1")
