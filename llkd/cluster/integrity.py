"""Detects lost and damaged files of a complete stage.

`checksums.json` records the size, the time of writing and the CRC-32 of each file. One listing
compares sizes and times. Contents are read only of files with another time, such as copies; every
read of a shard verifies the checksum embedded in it.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from llkd.cluster.shard_tasks import FEW_SHARDS, SHARDS_AT_ONCE, run_on_shards
from llkd.errors import DamageError
from llkd.store.folder import Folder
from llkd.store.manifest import CHECKSUMS, Manifest, write_manifest
from llkd.store.schema import shard_name, shard_number


class FileRecord(NamedTuple):
    """The record of one file."""

    size: int
    """Bytes."""
    modified: int
    """When it was written, in nanoseconds."""
    crc: int | None
    """CRC-32; None if the shard embeds its checksum."""


def close_stage(
    folder: Folder, finished: Manifest, crcs: Mapping[str, int], rejects: Folder | None = None
) -> Manifest:
    """Record the files of a finished stage, and write its manifest; returns the manifest.

    Args:
        folder: the folder of the stage.
        finished: its complete manifest.
        crcs: CRC-32 of all files to record, by name.
        rejects: the folder of its rejected rows.
    """
    if rejects is not None:
        record_shards(rejects)
    write_record(folder, dict(crcs), finished)
    write_manifest(folder, finished)
    return finished


def write_record(
    folder: Folder, crcs: Mapping[str, int | None], manifest: Manifest | None = None
) -> None:
    """Record the files of a folder as they are now, with the manifest of the stage."""
    there = folder.files()
    files = {name: [*there[name], crcs[name]] for name in sorted(crcs) if name in there}
    content = {"manifest": manifest and manifest.to_json(), "files": files}
    folder.write_json(CHECKSUMS, content, indent=None)


def record_shards(folder: Folder) -> None:
    """Record all shards of a folder, if it exists, by the checksums that they embed."""
    if names := folder.names():
        shards = (name for name in names if shard_number(name) is not None)
        write_record(folder, dict.fromkeys(shards))


def _read(folder: Folder) -> dict[str, Any] | None:
    """The content of a record, with a FileRecord for each of its `files` and of its `lost` files; None
    if the record is missing or damaged.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        content = folder.read_json(CHECKSUMS)
        files, lost = content["files"].items(), content.get("lost", {}).items()
        return {
            **content,
            "files": {name: FileRecord(*entry) for name, entry in files},
            "lost": {name: FileRecord(*entry) for name, entry in lost},
        }
    except (DamageError, KeyError, TypeError, AttributeError):
        return None


def read_record(folder: Folder) -> dict[str, FileRecord] | None:
    """The records of a folder's files, by name; None if missing or damaged.

    Raises:
        StorageError: they cannot be read.
    """
    content = _read(folder)
    return content and content["files"]


def last_records(folder: Folder) -> dict[str, FileRecord]:
    """The records of a folder's files, and of deleted ones that are being made again, by name."""
    content = _read(folder)
    return {**content["files"], **content["lost"]} if content else {}


def forget(folder: Folder, names: Iterable[str]) -> None:
    """Remove deleted files from the record: when they are made again they may differ, as labels do
    if an engine rounds differently each time. `last_records` still returns their records."""
    if (content := _read(folder)) is None:
        return
    files = content["files"]
    content["lost"] |= {name: files.pop(name) for name in names if name in files}
    folder.write_json(CHECKSUMS, content, indent=None)


def shard_crcs(folder: Folder, shards: int, known: Mapping[int, int]) -> dict[str, int]:
    """CRC-32 of all shards by name; unknown ones are computed from the files.

    Args:
        folder: the folder of the shards.
        shards: their number.
        known: CRC-32 of the shards just written, by shard.

    Raises:
        StorageError: a shard is damaged.
    """
    unknown = [shard for shard in range(shards) if shard not in known]

    def read(number: int) -> dict[str, Any]:
        folder.read_shard(unknown[number])
        return {"crc": folder.crc32(shard_name(unknown[number]))}

    found = {unknown[number]: answer["crc"] for number, answer in _each(read, len(unknown))}
    crcs = {**found, **known}
    return {shard_name(shard): crcs[shard] for shard in range(shards)}


def damaged_files(folder: Folder, expected: Iterable[str] = ()) -> list[str]:
    """The names of files that differ from their record, and of expected files that are missing;
    without a record also of shards that cannot be read."""
    content, there = _read(folder), folder.files()
    lost = set(expected) - there.keys()
    if content is None:
        shards = [name for name in there if shard_number(name) is not None]
        return sorted(lost | _damaged(folder, dict.fromkeys(sorted(shards))))
    known: dict[str, FileRecord] = content["files"]
    lost |= {n for n, record in known.items() if n not in there or there[n].size != record.size}
    doubtful = {
        name: record.crc
        for name, record in sorted(known.items())
        if name not in lost and there[name].modified != record.modified
    }
    bad = lost | _damaged(folder, doubtful)
    if doubtful and not bad:  # intact copies, which the next command need not read again
        content["files"] = {name: [*there[name], record.crc] for name, record in known.items()}
        folder.write_json(CHECKSUMS, content, indent=None)
    return sorted(bad)


def is_whole_file(folder: Folder, name: str) -> bool:
    """Whether a file exists and matches its record, if it has one."""
    record = (read_record(folder) or {}).get(name)
    return folder.exists(name) and (record is None or _matches(folder, name, record.crc))


def require_recorded(folder: Folder) -> None:
    """Read all files and compare them with their records.

    Raises:
        DamageError: a file differs from its record.
        StorageError: a file cannot be read.
    """
    for name, record in (read_record(folder) or {}).items():
        if not _matches(folder, name, record.crc):
            raise DamageError(
                f"{folder.uri}/{name} is damaged: its content does not match its checksum.",
                "Delete it and run the same command again, which rebuilds it.",
            )


def _matches(folder: Folder, name: str, crc: int | None) -> bool:
    """Whether a file has this CRC-32; without one, whether a shard matches the checksum embedded
    in it."""
    if crc is not None:
        return folder.crc32(name) == crc
    if (shard := shard_number(name)) is not None:
        try:
            folder.read_shard(shard)
        except DamageError:
            return False
    return True


def _damaged(folder: Folder, crcs: Mapping[str, int | None]) -> set[str]:
    """The files whose content does not match, by `_matches`."""
    names = list(crcs)

    def check(number: int) -> dict[str, Any]:
        return {"good": _matches(folder, names[number], crcs[names[number]])}

    return {names[number] for number, found in _each(check, len(names)) if not found["good"]}


def _each(
    work: Callable[[int], dict[str, Any]], count: int
) -> Iterable[tuple[int, dict[str, Any]]]:
    """(number, result) of `work` for each number below `count`: few in this process, many in Ray tasks."""
    if count > FEW_SHARDS:
        return run_on_shards(work, range(count))
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as threads:
        return list(enumerate(threads.map(work, range(count))))
