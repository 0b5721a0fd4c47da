"""A stage's manifest: what determined its output, and what came out of it.

The settings are flat `dotted.key -> value`; their hash, with that of the stage before, is the
stage's fingerprint. A run directory made with other settings is refused, naming the first that
differs.
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
"""What the files of a complete stage are, and a copy of its manifest."""
FILES = "files.json"
"""[file, bytes, rows] of each source file, in the order of the shards; kept by ingest."""


@dataclass(frozen=True)
class Manifest:
    """The record of one stage."""

    stage: str
    settings: Mapping[str, Any]
    """All that can change the output, and nothing that cannot."""
    upstream: str
    """Fingerprint of the stage that this one reads; empty for the first."""
    complete: bool = False
    results: Mapping[str, Any] = field(default_factory=dict)
    """Counts and times, filled in at the end."""

    @property
    def fingerprint(self) -> str:
        """A hash of the settings and of the upstream fingerprint."""
        content = json.dumps([self.stage, dict(self.settings), self.upstream], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def finished(self, results: Mapping[str, Any]) -> "Manifest":
        """The same stage, done. What was mended is told with the times of the first making."""
        times = {key: self.results[key] for key in _TIMES if key in self.results}
        return replace(self, complete=True, results={**results, **times})

    def to_json(self) -> dict[str, Any]:
        """What manifest.json holds."""
        return {"version": FORMAT_VERSION, "fingerprint": self.fingerprint, **vars(self)}

    def reopened(self) -> "Manifest":
        """The same stage with something missing."""
        return replace(self, complete=False)


_TIMES = ("seconds", "rows_per_second")


def read_manifest(folder: Folder) -> Manifest | None:
    """The manifest of a folder, or None if the stage was never started.

    Raises:
        FingerprintError: it was written by another version of LLKD.
        DamageError: it is damaged, and there is no copy of it.
        StorageError: it cannot be read.
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
            f"{folder.uri}/{MANIFEST} is damaged, so it cannot be told how the files "
            "beside it were made.",
            "Put it back from a copy, or delete that folder: it is made again.",
        ) from None


def _parsed(folder: Folder, data: dict[str, Any]) -> Manifest:
    version = data.pop("version", None)
    if version != FORMAT_VERSION:
        raise FingerprintError(
            f"{folder.uri} has format version {version}, this LLKD reads {FORMAT_VERSION}.",
            "Use another run_dir, or delete this one.",
        )
    data.pop("fingerprint", None)
    return Manifest(**data)


_PLANS = {MANIFEST, FILES, "settled.json", "pseudo_labels", "validation"}
"""What a stage lays out before it does its work."""


def begun(folder: Folder) -> bool:
    """Whether a stage has left any result. One that failed before that, by a misspelt model say,
    binds nobody to its settings."""
    # A complete stage is told without listing its shards.
    return folder.exists(CHECKSUMS) or any(name not in _PLANS for name in folder.names())


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Put a manifest in place."""
    folder.write_json(MANIFEST, manifest.to_json())


def open_stage(folder: Folder, wanted: Manifest) -> Manifest:
    """Begin or resume a stage: the manifest that is there if it agrees, else the wanted one,
    written.

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
                f"{folder.uri} holds shards but no {MANIFEST}, so it cannot be told how "
                "they were made.",
                "Use another run_dir, or delete that folder.",
            )
        write_manifest(folder, wanted)
        return wanted
    check_settings(folder, found, wanted)
    return found


def check_begun(folder: Folder, wanted: Manifest) -> None:
    """See that a stage, if it was begun, was begun with the settings that are wanted now.

    Raises:
        FingerprintError: naming the settings that differ, and what to do.
    """
    found = read_manifest(folder)
    if found is not None and begun(folder):
        check_settings(folder, found, wanted)


def check_settings(folder: Folder, found: Manifest, wanted: Manifest) -> None:
    """Compare what a folder was made with to what is asked for now.

    Raises:
        FingerprintError: naming the settings that differ, and what to do.
    """
    if found.fingerprint == wanted.fingerprint:
        return
    keys = sorted({*found.settings, *wanted.settings})
    # A missing setting and one that is null are different things.
    absent = object()
    changed = [
        key for key in keys if found.settings.get(key, absent) != wanted.settings.get(key, absent)
    ]
    lines = [
        f"  {key}: was {_shown(found.settings.get(key))}, now {_shown(wanted.settings.get(key))}"
        for key in changed
    ] or ["  an earlier stage was run again with other settings"]
    raise FingerprintError(
        f"{folder.uri} was made with other settings:\n" + "\n".join(lines),
        "Set run_dir to a new directory, put the settings back, or delete that folder and those "
        "of the stages after it to make them again.",
    )


def require_complete(folder: Folder, stage: str) -> Manifest:
    """The manifest of a stage that has to be done before this one.

    Raises:
        IncompleteError: it has not run to its end.
    """
    manifest = read_manifest(folder)
    if manifest is None or not manifest.complete:
        state = "has not been run" if manifest is None else "is not complete"
        raise IncompleteError(
            f"Stage {stage} {state} in {folder.uri}.",
            f"Run jobs/{stage}.py or jobs/run.py first.",
        )
    return manifest


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."
