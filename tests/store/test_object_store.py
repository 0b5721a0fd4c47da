"""An object store keeps what a disk does: whole files, whole listings, errors that name the file."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from llkd.cluster.integrity import close_stage, damaged_files
from llkd.errors import BusyError, DamageError, StorageError
from llkd.repair import reopen_damaged
from llkd.store import filesystems, lock
from llkd.store import folder as store_folder
from llkd.store.filesystems import filesystem
from llkd.store.folder import Folder
from llkd.store.lock import LEASE, Lease, held
from llkd.store.manifest import Manifest, read_manifest
from llkd.store.schema import shard_name
from tests.object_store import ObjectStore, Request
from tests.stores import (
    check_folders_are_copied_whole,
    check_names_are_taken_as_they_are,
    check_what_is_there_and_what_is_not,
)

TABLE = pa.table({"row": [0, 1, 2], "text": ["a", "b", "ç"]})


@pytest.fixture
def store(running: ObjectStore) -> Iterator[ObjectStore]:
    yield running
    running.gate = None


@pytest.fixture
def folder(store: ObjectStore) -> Folder:
    """An empty folder in a bucket of its own, before which nothing was asked."""
    folder = Folder(f"{store.make_bucket(f'bucket-{uuid.uuid4().hex}')}/run/labels")
    store.requests.clear()
    return folder


def path_of(folder: Folder, name: str) -> str:
    return f"{folder.uri.removeprefix('s3://')}/{name}"


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sets how often requests are tried from now on."""

    def set_(number: int) -> None:
        monkeypatch.setattr(filesystems, "S3_ATTEMPTS", number)
        filesystems.forget_filesystems()

    yield set_
    filesystems.forget_filesystems()


def test_a_file_is_one_put_and_read_by_two_requests(store: ObjectStore, folder: Folder) -> None:
    folder.write_shard(7, TABLE)
    assert store.counted() == {"PUT": 1}
    assert folder.read_shard(7).equals(TABLE)
    assert store.counted() == {"PUT": 1, "HEAD": 1, "GET": 1}
    assert folder.read_json_if_there("x.json") is None
    assert store.counted() == {"PUT": 1, "HEAD": 2, "GET": 1}
    assert folder.shards() == {7}
    assert store.counted() == {"PUT": 1, "HEAD": 2, "GET": 1, "LIST": 1}


def test_what_is_there_and_what_is_not(folder: Folder) -> None:
    check_what_is_there_and_what_is_not(folder)


def test_names_are_taken_as_they_are(folder: Folder) -> None:
    check_names_are_taken_as_they_are(folder)


def test_a_listing_of_more_than_a_page_is_whole(store: ObjectStore, folder: Folder) -> None:
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    bucket, _, key = path_of(folder, "").partition("/")
    for number in range(1100):  # by the front door they take their time
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket, key + shard_name(number), b"")
    assert folder.shards() == set(range(1100))
    assert store.counted() == {"LIST": 2}
    folder.delete()
    assert folder.shards() == set()


def test_folders_are_copied_whole(tmp_path: Path, folder: Folder) -> None:
    check_folders_are_copied_whole(tmp_path, folder)


def test_a_reader_gets_the_old_file_or_the_new_one(store: ObjectStore, folder: Folder) -> None:
    """Put anew between the two requests of a read, shorter and longer."""
    folder.write_json("x.json", {"rows": [1, 2]})
    coming: list[Any] = []

    def put_anew(request: Request) -> None:
        if request.kind == "GET" and coming:
            folder.write_json("x.json", coming.pop())

    store.gate = put_anew
    for content in ({"rows": [1, 2, 3, 4]}, {"rows": []}):
        coming.append(content)
        assert folder.read_json("x.json") == content
        assert coming == []
    folder.write_bytes("x.json", b'{"rows": [1')
    with pytest.raises(DamageError, match=r"labels/x.json is damaged.*Delete it"):
        folder.read_json("x.json")


def test_an_interrupt_leaves_the_old_file_or_the_new_one(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when the object is opened and nothing is written to it yet."""
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background
    folder.write_bytes("x", b"old")
    real, path = filesystem(folder.uri)

    class Interrupted:
        def open_output_stream(self, *arguments: Any, **options: Any) -> "Interrupted":
            self._file = real.open_output_stream(*arguments, **options)
            return self

        def __enter__(self) -> "Interrupted":
            return self

        def __exit__(self, *error: Any) -> None:
            self._file.close()

        def write(self, data: bytes) -> None:
            signal.raise_signal(signal.SIGINT)
            self._file.write(data)

    with monkeypatch.context() as patched:
        patched.setattr(store_folder, "filesystem", lambda uri: (Interrupted(), path))
        with pytest.raises(KeyboardInterrupt):
            folder.write_bytes("x", b"new")
    signal.signal(signal.SIGINT, heard)
    assert folder.read_bytes("x") in (b"old", b"new")


def test_an_upload_in_parts_that_fails_leaves_nothing(store: ObjectStore, folder: Folder) -> None:
    def refuse_some(request: Request) -> str | None:
        parts = [each for each in store.requests if each.kind == "PUT"]
        return "403 Forbidden" if request.kind == "PUT" and len(parts) == 3 else None

    store.gate = refuse_some
    with pytest.raises(StorageError, match=r"Cannot write .*labels/large.*ACCESS_DENIED|INVALID"):
        folder.write_bytes("large", bytes(24 << 20))
    assert store.counted()["PUT"] >= 3
    assert folder.names() == []


def test_what_passes_is_tried_again(store: ObjectStore, folder: Folder) -> None:
    folder.write_bytes("x", b"1")
    store.requests.clear()
    store.gate = lambda request: "503 Slow Down" if len(store.requests) == 1 else None
    assert folder.read_bytes("x") == b"1"
    assert store.counted() == {"HEAD": 2, "GET": 1}


ASKING: dict[str, Callable[[Folder], Any]] = {
    "write": lambda folder: folder.write_bytes("x", b"1"),
    "read": lambda folder: folder.read_bytes("x"),
    "look": lambda folder: folder.exists("x"),
    "list": lambda folder: folder.names(),
    "delete": lambda folder: folder.delete(),
    "delete a file": lambda folder: folder.delete_file("x"),
}


@pytest.mark.parametrize("what", ASKING)
def test_a_name_that_no_object_can_have_is_told(store: ObjectStore, what: str) -> None:
    with pytest.raises(StorageError, match=f"Cannot {what.split()[0]} .*s3://some-bucket//run"):
        ASKING[what](Folder("s3://some-bucket//run"))


@pytest.mark.parametrize("what", ASKING)
def test_a_store_that_refuses_is_named(store: ObjectStore, folder: Folder, what: str) -> None:
    store.gate = lambda request: "403 Forbidden"
    with pytest.raises(StorageError, match=f"Cannot {what.split()[0]} .*{folder.uri}"):
        ASKING[what](folder)


def test_a_busy_store_is_asked_so_often_and_no_more(
    store: ObjectStore, folder: Folder, attempts: Callable[[int], None]
) -> None:
    attempts(2)
    store.gate = lambda request: "503 Slow Down"
    with pytest.raises(StorageError, match=f"Cannot list {folder.uri}"):
        folder.names()
    assert store.counted() == {"LIST": 2}


def test_a_store_that_does_not_answer_is_given_up(
    monkeypatch: pytest.MonkeyPatch, attempts: Callable[[int], None]
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        attempts(1)
        with pytest.raises(StorageError, match="Cannot read s3://some-bucket/run/x"):
            Folder("s3://some-bucket/run").read_bytes("x")
    with pytest.raises(StorageError, match="Cannot write s3://some-bucket/run/x"):  # and is gone
        Folder("s3://some-bucket/run").write_bytes("x", b"1")


def test_a_bucket_that_is_not_there_and_a_wrong_key_are_told(
    store: ObjectStore, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match="Cannot write s3://no-such-bucket/x.*NO_SUCH_BUCKET"):
        Folder("s3://no-such-bucket").write_bytes("x", b"1")
    with pytest.raises(DamageError, match="Cannot read s3://no-such-bucket/x: it does not exist"):
        Folder("s3://no-such-bucket").read_bytes("x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    filesystems.forget_filesystems()
    with pytest.raises(StorageError, match=f"Cannot write {folder.uri}/x.*INVALID_ACCESS_KEY_ID"):
        folder.write_bytes("x", b"1")
    with pytest.raises(StorageError, match=f"Cannot read {folder.uri}/x.*ACCESS_DENIED"):
        folder.read_bytes("x")
    filesystems.forget_filesystems()


@pytest.fixture
def stage(store: ObjectStore, folder: Folder) -> Folder:
    """A stage of four shards, complete."""
    crcs = {shard_name(shard): folder.write_shard(shard, TABLE) for shard in range(4)}
    close_stage(folder, Manifest("label", {}, "").finished({"rows": [3] * 4}), crcs)
    store.requests.clear()
    return folder


def test_a_cut_and_a_lost_object_are_found_and_opened_for_anew(
    store: ObjectStore, stage: Folder
) -> None:
    assert damaged_files(stage) == []
    assert store.counted() == {"HEAD": 1, "GET": 1, "LIST": 1}  # the record, and the listing
    stage.write_bytes(shard_name(1), stage.read_bytes(shard_name(1))[:-1])
    stage.delete_file(shard_name(3))
    said: list[str] = []
    assert reopen_damaged(stage, "labels", said.append)
    assert said == [
        "labels: 2 damaged shards (part-00001.parquet, part-00003.parquet) are made again"
    ]
    assert stage.shards() == {0, 2}
    manifest = read_manifest(stage)
    assert manifest is not None
    assert not manifest.complete


def test_what_cannot_be_reached_is_not_taken_for_damaged(store: ObjectStore, stage: Folder) -> None:
    record = stage.read_json("checksums.json")
    for entry in record["files"].values():
        entry[1] -= 10**9  # as of copies: their contents have to be looked at
    stage.write_json("checksums.json", record)

    def no_shards(request: Request) -> str | None:
        return "403 Forbidden" if request.path.endswith(".parquet") else None

    store.gate = no_shards
    with pytest.raises(StorageError, match=r"Cannot read .*labels/part-0000"):
        reopen_damaged(stage, "labels", lambda line: None)
    store.gate = lambda request: "403 Forbidden" if request.kind == "GET" else None
    with pytest.raises(StorageError, match=r"Cannot read .*labels/manifest.json"):
        read_manifest(stage)
    store.gate = None
    assert stage.shards() == {0, 1, 2, 3}
    assert not reopen_damaged(stage, "labels", lambda line: None)


HOLDER = "import signal, sys; from llkd.store.lock import held\nwith held(sys.argv[1]): print(flush=True); signal.pause()"


def test_a_killed_job_holds_its_lease_until_it_is_stale(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = subprocess.Popen([sys.executable, "-c", HOLDER, folder.uri], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    owner.stdout.readline()
    owner.kill()
    owner.wait()
    by = rf"in use by process {owner.pid} on .* it holds the directory for \d+ seconds more"
    for _ in range(2):
        with pytest.raises(BusyError, match=by):
            held(folder.uri).__enter__()
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.1)
    while True:
        with contextlib.suppress(BusyError), held(folder.uri):
            assert len(Folder(f"{folder.uri}/{LEASE}").files()) == 1
            break
    assert Folder(f"{folder.uri}/{LEASE}").files() == {}


def test_a_lease_costs_two_requests_to_take_and_to_renew(
    store: ObjectStore, folder: Folder
) -> None:
    lease = Lease(folder.uri)
    lease.take()
    assert store.counted() == {"PUT": 1, "LIST": 1}
    lease.renew()
    assert store.counted() == {"PUT": 2, "LIST": 2}


def test_of_two_jobs_at_the_same_moment_one_gives_way_however_slow_the_store(
    store: ObjectStore, folder: Folder
) -> None:
    """The second comes when the first has put its claim, and its listing is still under way."""
    first, second = Lease(folder.uri), Lease(folder.uri)
    refused: list[BusyError | None] = []

    def second_comes(request: Request) -> None:
        if request.kind == "LIST" and not refused:
            refused.append(None)
            with pytest.raises(BusyError) as caught:
                second.take()
            refused[0] = caught.value

    store.gate = second_comes
    first.take()
    assert f"in use by process {os.getpid()}" in str(refused[0])
    first.renew()


def test_the_same_by_googles_store() -> None:
    google, path = filesystem("gs://bucket/runs/a b")
    assert isinstance(google, fs.GcsFileSystem)
    assert path == "bucket/runs/a b"
    assert filesystem("gs://bucket/other")[0] is google
    _, (options,) = google.__reduce__()
    assert options["retry_time_limit"].total_seconds() == filesystems.GCS_SECONDS
