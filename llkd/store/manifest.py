"""A stage's manifest: the settings that determine its output, and its results.

The settings are flat, `dotted.key -> value`. Their hash, together with the fingerprint of the
upstream stage, is the stage's fingerprint. A run directory made with other settings is refused; the
error lists the settings that differ.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llkd.errors import DamageError, FingerprintError, IncompleteError
from llkd.store.folder import Folder
from llkd.store.schema import FORMAT_VERSION

MANIFEST = "manifest.json"
CHECKSUMS = "checksums.json"
"""The records of a complete stage's files, and a copy of its manifest."""
FILES = "files.json"
"""[file, bytes, rows] of each source file, in the order of the shards; written by ingest."""


@dataclass(frozen=True)
class Manifest:
    """The record of one stage."""

    stage: str
    settings: Mapping[str, Any]
    """Exactly the settings that can change the output."""
    upstream: str
    """Fingerprint of the stage that this one reads; empty if there is none."""
    complete: bool = False
    results: Mapping[str, Any] = field(default_factory=dict)
    """Counts and times of the complete stage."""

    @property
    def fingerprint(self) -> str:
        """Hash of the settings and the upstream fingerprint."""
        content = json.dumps([self.stage, dict(self.settings), self.upstream], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def finished(self, results: Mapping[str, Any]) -> "Manifest":
        """The complete stage. A repaired stage keeps the times of its first completion."""
        times = {key: self.results[key] for key in _TIMES if key in self.results}
        return replace(self, complete=True, results={**results, **times})

    def to_json(self) -> dict[str, Any]:
        """The content of manifest.json."""
        return {"version": FORMAT_VERSION, "fingerprint": self.fingerprint, **vars(self)}


_TIMES = ("seconds", "rows_per_second")


def read_manifest(folder: Folder) -> Manifest | None:
    """The manifest of a folder, read from its copy if damaged; None if the stage has not begun.

    Raises:
        FingerprintError: another version of LLKD wrote it.
        DamageError: the manifest and its copy are damaged.
        StorageError: the manifest cannot be read.
    """
    try:
        found = folder.read_json_if_there(MANIFEST)
        return None if found is None else _parsed(folder, found)
    except (DamageError, TypeError, ValueError, AttributeError):
        pass
    try:
        return _parsed(folder, folder.read_json(CHECKSUMS)["manifest"])
    except (DamageError, TypeError, ValueError, AttributeError, KeyError):
        raise DamageError(
            f"{folder.uri}/{MANIFEST} is damaged, so the settings of this folder are unknown",
            "Restore the file from a backup, or delete the folder and run the same command again to "
            "rebuild it.",
        ) from None


def _parsed(folder: Folder, data: dict[str, Any]) -> Manifest:
    version = data.pop("version", None)
    if version != FORMAT_VERSION:
        raise FingerprintError(
            f"{folder.uri} has format version {version}, but this LLKD reads {FORMAT_VERSION}",
            "Set run_dir to another directory, or delete this one.",
        )
    data.pop("fingerprint", None)
    return Manifest(**data)


_PREPARED = {MANIFEST, FILES, "settled.json", "pseudo_labels", "refinement", "validation"}
"""Files that a stage writes before its first result."""


def begun(folder: Folder) -> bool:
    """Whether a stage has written any result. Until then its settings may change, for example after a
    misspelt model name."""
    # The first condition avoids listing the shards of a complete stage.
    return folder.exists(CHECKSUMS) or any(name not in _PREPARED for name in folder.names())


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Write the manifest of a folder."""
    folder.write_json(MANIFEST, manifest.to_json())


def reopen(folder: Folder) -> None:
    """Mark a complete stage as incomplete."""
    manifest = read_manifest(folder)
    if manifest is not None and manifest.complete:
        write_manifest(folder, replace(manifest, complete=False))


def open_stage(folder: Folder, wanted: Manifest) -> Manifest:
    """Begin or resume a stage; returns the folder's manifest, which is `wanted` if it has none.

    Raises:
        FingerprintError: the folder was made with other settings.
    """
    found = read_manifest(folder)
    if found is not None and found.fingerprint != wanted.fingerprint and not begun(folder):
        folder.delete()
        found = None
    if found is None:
        if folder.shards():
            raise FingerprintError(
                f"{folder.uri} holds shards but no {MANIFEST}, so their settings are unknown",
                "Set run_dir to another directory, or delete that folder.",
            )
        write_manifest(folder, wanted)
        return wanted
    check_settings(folder, found, wanted)
    return found


def check_begun(folder: Folder, wanted: Manifest) -> None:
    """Compare the settings of a stage, if it has begun, with the wanted ones.

    Raises:
        FingerprintError: they differ.
    """
    found = read_manifest(folder)
    if found is not None and begun(folder):
        check_settings(folder, found, wanted)


def changed_settings(found: Manifest, wanted: Manifest) -> list[str]:
    """The settings that differ, sorted."""
    absent = object()  # a missing setting differs from one that is null
    return [
        key
        for key in sorted({*found.settings, *wanted.settings})
        if found.settings.get(key, absent) != wanted.settings.get(key, absent)
    ]


def delete_stage(folder: Folder) -> None:
    """Delete the folder of a stage, its manifest last: if this is interrupted, what is left still belongs to
    a stage with the former settings, and is not taken for results of the next."""
    folder.delete_content(but=MANIFEST)
    folder.delete()


def check_settings(folder: Folder, found: Manifest, wanted: Manifest) -> None:
    """Compare the settings of a folder with the wanted ones.

    Raises:
        FingerprintError: they differ; the error lists the differences.
    """
    if found.fingerprint == wanted.fingerprint:
        return
    changed = changed_settings(found, wanted)
    lines = [
        f"  {key}: was {_shown(found.settings.get(key))}, now {_shown(wanted.settings.get(key))}"
        for key in changed
    ] or ["  an earlier stage was rerun with other settings"]
    raise FingerprintError(
        f"{folder.uri} was made with other settings:\n" + "\n".join(lines),
        "Set run_dir to a new directory, restore the settings, or delete that folder and those of "
        "all later stages to rebuild them.",
    )


def is_complete(folder: Folder) -> bool:
    """Whether a stage is complete."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.complete


def require_complete(folder: Folder, stage: str) -> Manifest:
    """The manifest of a stage that another one reads.

    Raises:
        IncompleteError: the stage is incomplete.
    """
    manifest = read_manifest(folder)
    if manifest is None or not manifest.complete:
        state = "has not been run" if manifest is None else "is not complete"
        raise IncompleteError(
            f"Stage {stage} {state} in {folder.uri}",
            f"Run jobs/{stage}.py or jobs/run.py first.",
        )
    return manifest


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
