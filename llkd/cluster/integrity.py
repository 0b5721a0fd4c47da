"""What the files of a complete stage are, so that one which is lost or damaged is found.

`checksums.json` keeps of each file its size, the time it was written and the CRC-32 of its content.
One listing tells whether sizes and times are still so. Contents are read only of files that were
written at another time, as copies are; and whoever reads a shard looks at the checksum in it.
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
    """What is known of a file."""

    size: int
    """Bytes."""
    modified: int
    """When it was written, in nanoseconds."""
    crc: int | None
    """CRC-32; None of a shard whose own checksum tells alone."""


def close_stage(
    folder: Folder, finished: Manifest, crcs: Mapping[str, int], rejects: Folder | None = None
) -> Manifest:
    """Record the files of a stage that is done, and write its manifest; returns that.

    Args:
        folder: of the stage.
        finished: its manifest, complete.
        crcs: CRC-32 of all files that count, by name.
        rejects: the rows left out of its shards; these have checksums of their own.
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
    """What is known of the files of a folder, by name; None where nothing is, or it is damaged.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        files = folder.read_json(CHECKSUMS)["files"]
        return {name: FileRecord(*entry) for name, entry in files.items()}
    except (DamageError, KeyError, TypeError, AttributeError):
        return None


def forget(folder: Folder, names: Iterable[str]) -> None:
    """Have files made anew that were deleted: they need not be what they were, as the labels of an
    engine that rounds otherwise each time. `lost_files` tells what they were."""
    if (known := read_record(folder)) is None:
        return
    content = folder.read_json(CHECKSUMS)
    gone = {name: known[name] for name in names if name in known}
    content["files"] = {name: entry for name, entry in known.items() if name not in gone}
    content["lost"] = {**content.get("lost", {}), **gone}
    folder.write_json(CHECKSUMS, content, indent=None)


def lost_files(folder: Folder) -> dict[str, FileRecord]:
    """What is known of files that are made anew, by name."""
    if read_record(folder) is None:
        return {}
    lost = folder.read_json(CHECKSUMS).get("lost", {})
    return {name: FileRecord(*entry) for name, entry in lost.items()}


def shard_crcs(folder: Folder, shards: int, known: Mapping[int, int]) -> dict[str, int]:
    """CRC-32 of all shards by name; of those that are not known from their contents.

    Args:
        folder: of the shards.
        shards: how many there are.
        known: of those that have just been written, by number.

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
    """The names of files that are not as they were recorded, or are expected and not there; without
    a record, of shards that cannot be read."""
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
    if doubtful and not bad:  # copies: they need not be read the next time
        files = {name: [*there[name], record.crc] for name, record in known.items()}
        content = {**folder.read_json(CHECKSUMS), "files": files}
        folder.write_json(CHECKSUMS, content, indent=None)
    return sorted(bad)


def is_whole_file(folder: Folder, name: str) -> bool:
    """Whether a file is there, and is what was recorded if it was."""
    if not folder.exists(name):
        return False
    record = (read_record(folder) or {}).get(name)
    return record is None or record.crc in (None, folder.crc32(name))


def require_recorded(folder: Folder) -> None:
    """Read all files, to see that they are what was recorded.

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
    """Those files whose content is not what it was."""

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
    """(number, result) of each of so many pieces of work: a few here, many in Ray tasks."""
    if count > FEW_SHARDS:
        return run_on_shards(work, range(count))
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as threads:
        return list(enumerate(threads.map(work, range(count))))
