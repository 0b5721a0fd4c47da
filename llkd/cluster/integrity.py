"""Detects lost and damaged files of a complete stage.

`checksums.json` records the size, the time of writing and the CRC-32 of each file. One listing
compares sizes and times. Contents are read only of files with another time, such as copies; every
read of a shard verifies the checksum embedded in it.
"""

import contextlib
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
        folder: of the stage.
        finished: its manifest, complete.
        crcs: CRC-32 of all recorded files, by name.
        rejects: the rows left out of its shards; their shards embed checksums.
    """
    if rejects is not None and (shards := rejects.shards()):
        write_record(rejects, dict.fromkeys(map(shard_name, shards)))
    write_record(folder, dict(crcs), finished)
    write_manifest(folder, finished)
    return finished


def write_record(
    folder: Folder, crcs: Mapping[str, int | None], manifest: Manifest | None = None
) -> None:
    """Record the files of a folder as they are now, with the manifest that goes with them."""
    there = folder.files()
    files = {name: [*there[name], crcs[name]] for name in sorted(crcs) if name in there}
    content = {"manifest": manifest and manifest.to_json(), "files": files}
    folder.write_json(CHECKSUMS, content, indent=None)


def read_record(folder: Folder) -> dict[str, FileRecord] | None:
    """The records of a folder's files, by name; None if missing or damaged.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        files = folder.read_json(CHECKSUMS)["files"]
        return {name: FileRecord(*entry) for name, entry in files.items()}
    except (DamageError, KeyError, TypeError, AttributeError):
        return None


def forget(folder: Folder, names: Iterable[str]) -> None:
    """Remove deleted files from the record: when they are made again they may differ, as labels do of
    an engine that rounds differently each time. `lost_files` keeps their old records."""
    if (known := read_record(folder)) is None:
        return
    content = folder.read_json(CHECKSUMS)
    gone = {name: known[name] for name in names if name in known}
    content["files"] = {name: entry for name, entry in known.items() if name not in gone}
    content["lost"] = {**content.get("lost", {}), **gone}
    folder.write_json(CHECKSUMS, content, indent=None)


def lost_files(folder: Folder) -> dict[str, FileRecord]:
    """The old records of files that are being made again, by name."""
    if read_record(folder) is None:
        return {}
    lost = folder.read_json(CHECKSUMS).get("lost", {})
    return {name: FileRecord(*entry) for name, entry in lost.items()}


def shard_crcs(folder: Folder, shards: int, known: Mapping[int, int]) -> dict[str, int]:
    """CRC-32 of all shards by name; unknown ones are computed from their contents.

    Args:
        folder: of the shards.
        shards: how many there are.
        known: of the shards that have just been written, by number.

    Raises:
        StorageError: one is damaged.
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
    known, there = read_record(folder), folder.files()
    lost = set(expected) - there.keys()
    if known is None:
        shards = {name for name in there if shard_number(name) is not None}
        return sorted(lost | _unreadable(folder, sorted(shards), {}))
    lost |= {n for n, record in known.items() if n not in there or there[n].size != record.size}
    doubtful = sorted(
        n for n, record in known.items() if n not in lost and there[n].modified != record.modified
    )
    bad = lost | _unreadable(folder, doubtful, known)
    if doubtful and not bad:  # intact copies: not read again the next time
        files = {name: [*there[name], record.crc] for name, record in known.items()}
        content = {**folder.read_json(CHECKSUMS), "files": files}
        folder.write_json(CHECKSUMS, content, indent=None)
    return sorted(bad)


def is_whole_file(folder: Folder, name: str) -> bool:
    """Whether a file exists and agrees with its record, if it has one."""
    if not folder.exists(name):
        return False
    record = (read_record(folder) or {}).get(name)
    return record is None or record.crc in (None, folder.crc32(name))


def require_recorded(folder: Folder) -> None:
    """Read all files and compare them with their records.

    Raises:
        DamageError: one is not.
        StorageError: one cannot be read.
    """
    for name, record in (read_record(folder) or {}).items():
        if record.crc not in (None, folder.crc32(name)):
            raise DamageError(
                f"{folder.uri}/{name} is damaged: it is not what was written.",
                "Delete it and run the same command again: it is made anew.",
            )


def _unreadable(
    folder: Folder, names: list[str], known: Mapping[str, FileRecord]
) -> set[str]:  # fmt: skip
    """The files whose content differs from its record, or cannot be read."""

    def read(number: int) -> dict[str, Any]:
        name = names[number]
        crc = known[name].crc if name in known else None
        with contextlib.suppress(DamageError):
            if crc is not None:
                return {"good": folder.crc32(name) == crc}
            shard = shard_number(name)
            assert shard is not None
            folder.read_shard(shard)
            return {"good": True}
        return {"good": False}

    return {names[number] for number, found in _each(read, len(names)) if not found["good"]}


def _each(
    work: Callable[[int], dict[str, Any]], count: int
) -> Iterable[tuple[int, dict[str, Any]]]:
    """(number, result) of `work` for each number: few in this process, many in Ray tasks."""
    if count > FEW_SHARDS:
        return run_on_shards(work, range(count))
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as threads:
        return list(enumerate(threads.map(work, range(count))))
