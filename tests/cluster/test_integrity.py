"""Damaged files are found by one listing and few reads."""

import os
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llkd.cluster.integrity import (
    close_stage,
    damaged_files,
    read_record,
    require_recorded,
    shard_crcs,
    write_record,
)
from llkd.errors import DamageError, FingerprintError, StorageError
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, read_manifest, reopen
from llkd.store.schema import shard_name

MANIFEST = Manifest("label", {"seed": 1}, "").finished({"rows": [500] * 4, "seconds": 3.0})


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A stage of four shards, complete; two were written before a kill."""
    folder = Folder(str(tmp_path / "labels"))
    table = pa.table({"row": np.arange(500), "value": np.random.default_rng(0).random(500)})
    written = {shard: folder.write_shard(shard, table) for shard in range(4)}
    del written[1], written[2]
    close_stage(folder, MANIFEST, shard_crcs(folder, 4, written))
    return folder


def path_of(folder: Folder, shard: int) -> Path:
    return Path(folder.uri) / shard_name(shard)


def flip(path: Path, keep_time: bool = False) -> None:
    """Change a byte in the middle."""
    data, state = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_intact_files_are_recognised_by_a_listing(folder: Folder) -> None:
    with mock.patch.object(Folder, "crc32", side_effect=AssertionError):
        assert damaged_files(folder) == []


def test_cut_altered_and_lost_shards_are_named(folder: Folder) -> None:
    flip(path_of(folder, 0))
    state = path_of(folder, 1).stat()
    path_of(folder, 1).write_bytes(path_of(folder, 1).read_bytes()[:-1])
    os.utime(path_of(folder, 1), ns=(state.st_atime_ns, state.st_mtime_ns))
    path_of(folder, 3).unlink()
    assert damaged_files(folder) == [shard_name(0), shard_name(1), shard_name(3)]


def test_a_replaced_shard_is_damaged_although_it_is_readable(folder: Folder) -> None:
    table = folder.read_shard(1)
    value_n = table["value"].to_numpy().copy()
    value_n[7] = 0.123
    folder.write_shard(1, table.set_column(1, "value", pa.array(value_n)))
    assert folder.read_shard(1)["value"].to_numpy()[7] == 0.123
    assert damaged_files(folder) == [shard_name(1)]


def test_copies_are_read_once(folder: Folder, tmp_path: Path) -> None:
    copy = Folder(str(tmp_path / "copy"))
    shutil.copytree(folder.uri, copy.uri, copy_function=shutil.copyfile)
    with mock.patch.object(Folder, "crc32", autospec=True, side_effect=Folder.crc32) as read:
        assert damaged_files(copy) == damaged_files(copy) == []
    assert read.call_count == 4


def test_damage_that_keeps_size_and_time_is_found_by_the_reader(folder: Folder) -> None:
    flip(path_of(folder, 2), keep_time=True)
    assert damaged_files(folder) == []
    with pytest.raises(StorageError, match=r"labels/part-00002.parquet is damaged.*Delete it"):
        folder.read_shard(2)


@pytest.mark.parametrize("column", ["value", "text"])
def test_any_flipped_bit_of_a_shard_is_found_by_the_reader(tmp_path: Path, column: str) -> None:
    """In the pages, in the footer, which page checksums do not cover, and in the checksum itself."""
    folder, row_n = Folder(str(tmp_path)), np.arange(12)
    content = row_n / 7 if column == "value" else list(map(str, row_n))
    table = pa.table({"row": row_n, column: content})
    folder.write_shard(0, table)
    data = path_of(folder, 0).read_bytes()
    damaged = [data[:length] for length in range(len(data))]
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    with mock.patch.object(Folder, "read_bytes", side_effect=damaged):
        for _ in damaged:
            with pytest.raises(DamageError, match=r"part-00000.parquet is damaged.*checksum"):
                folder.read_shard(0)
    assert folder.read_shard(0).equals(table)


def test_a_shard_is_parquet_to_others(folder: Folder) -> None:
    theirs = pq.read_table(path_of(folder, 0), memory_map=True)
    assert theirs.equals(folder.read_shard(0))
    pq.write_table(theirs, path_of(folder, 0))  # other writers embed no checksum
    with pytest.raises(DamageError, match="checksum"):
        folder.read_shard(0)


def test_without_a_record_shards_are_read(folder: Folder) -> None:
    for damage in ("[]", "{}", "{"):
        (Path(folder.uri) / "checksums.json").write_text(damage)
        assert read_record(folder) is None
    flip(path_of(folder, 0))
    path_of(folder, 3).unlink()
    assert damaged_files(folder) == [shard_name(0)]
    assert damaged_files(folder, map(shard_name, range(4))) == [shard_name(0), shard_name(3)]


def test_a_damaged_manifest_is_read_from_its_copy(folder: Folder) -> None:
    path = Path(folder.uri) / "manifest.json"
    for damage in (b"", path.read_bytes()[:40], b"[1]", b'{"version": 2, "stage": "label"}'):
        path.write_bytes(damage)
        assert read_manifest(folder) == MANIFEST
    path.write_bytes(b'{"version": 99}')
    with pytest.raises(FingerprintError, match="version 99"):
        read_manifest(folder)
    path.write_bytes(b"")
    folder.delete_file("checksums.json")
    with pytest.raises(StorageError, match=r"labels/manifest.json is damaged.*delete the folder"):
        read_manifest(folder)


def test_a_repaired_stage_keeps_its_times(folder: Folder) -> None:
    reopen(folder)
    found = read_manifest(folder)
    assert found is not None
    assert not found.complete
    again = found.finished({"rows": [500] * 4, "seconds": 0.1})
    assert again == MANIFEST


def test_bits_that_changed_in_place_are_found_by_reading_all_files(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_bytes("model.safetensors", b"weights")
    write_record(folder, {"model.safetensors": folder.crc32("model.safetensors")})
    require_recorded(folder)
    path = tmp_path / "model.safetensors"
    written = path.stat()
    path.write_bytes(b"weighty")
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert damaged_files(folder) == []  # of the same size and time
    with pytest.raises(DamageError, match=r"model.safetensors is damaged"):
        require_recorded(folder)
