"""Export a finished run for others: the student and the labelled rows, with their cards.

An export is valid once its manifest is complete. On a local disk it is built in a temporary folder,
which then replaces an older export; on an object store, which cannot rename, it is built in place and
the manifest is written last.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs

from llkd import __version__
from llkd.cluster.integrity import require_recorded
from llkd.config.run import RunConfig
from llkd.errors import DamageError, ExportError, FingerprintError, StorageError
from llkd.results.cards import CARD, OnnxFacts, dataset_card, model_card
from llkd.results.hub import push_folder
from llkd.results.labelled_dataset import labelled_features, write_labelled_rows
from llkd.results.onnx import write_onnx
from llkd.store.filesystems import GOOGLE, filesystem
from llkd.store.folder import Folder
from llkd.store.manifest import (
    CHECKSUMS,
    MANIFEST,
    Manifest,
    read_manifest,
    require_complete,
    write_manifest,
)
from llkd.store.schema import METRICS, TEXT, RunLayout
from llkd.store.scratch import scratch_folder
from llkd.store.transfer import local_copy, upload_folder
from llkd.teacher.calibrate import calibrate, calibration_settings

STAGE = "publish"
MODEL, DATASET = "model", "dataset"
CHECKED_TEXTS = 32
"""Texts on which the ONNX outputs are compared with the student's."""


def folder_of(config: RunConfig) -> str:
    """The URI of the export."""
    return (config.export.folder or RunLayout(config.run_dir).exported).rstrip("/")


def publish(config: RunConfig, print_line: Callable[[str], None]) -> Manifest:
    """Export unless an equal export exists, and push it to the hub if the config asks for it.

    Args:
        config: the run.
        print_line: prints a line on the console.

    Returns:
        The manifest. Its results have the sizes of the `files` and, with an ONNX form, the largest
        `onnx_difference`.

    Raises:
        IncompleteError: the student is not finished, or the corpus is not labelled.
        ExportError: the folder holds something else, the ONNX outputs differ, or the hub refuses
            the push.
    """
    place = _Place(folder_of(config))
    wanted = _manifest_of(config)
    manifest = place.finished(wanted)
    if manifest is None:
        manifest = _build(config, wanted, place)
    _push(config, place, print_line)
    return manifest


def _manifest_of(config: RunConfig) -> Manifest:
    """The manifest of an export: everything that determines it."""
    layout = RunLayout(config.run_dir)
    student = require_complete(Folder(layout.student), "distill")
    labelled = require_complete(Folder(layout.labels("corpus")), "label")
    export = config.export.model_dump(
        include={"onnx", "dataset", "distribution", "gold", "license", "language", "model_repo",
                 "dataset_repo"}
    )  # fmt: skip
    placement = {"replicas", "nodes", "resources", "max_actor_failures", "workers"}
    in_cards = config.model_dump_json(
        include={"task", "teacher", "teachers", "student", "selection"},
        exclude={"teacher": placement, "teachers": {"__all__": placement}, "student": placement},
    )
    metrics = _metrics(config) or {}
    figures = {
        f"{who}.{dataset}": metrics.get(who, {}).get(dataset)
        for who in ("teacher", "student") for dataset in ("corpus", "test")
    }  # fmt: skip
    settings = {
        **{f"export.{name}": value for name, value in export.items()},
        **calibration_settings(config),
        "labels": labelled.fingerprint,
        "metrics": _hash(json.dumps(figures, sort_keys=True)),
        "told in the cards": _hash(in_cards),
        "version": __version__,
    }
    return Manifest(STAGE, settings, student.fingerprint)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _metrics(config: RunConfig) -> dict[str, Any] | None:
    """The content of metrics.json; None if it is missing or damaged."""
    found: dict[str, Any] | None = None
    with suppress(DamageError):
        found = Folder(RunLayout(config.run_dir).root).read_json_if_there(METRICS)
    return found


def _build(config: RunConfig, wanted: Manifest, place: "_Place") -> Manifest:
    results: dict[str, Any] = {}
    with _model(config) as (model, onnx):  # what may fail comes before anything is deleted
        building = place.begin(wanted)
        upload_folder(model, f"{building}/{MODEL}", last=CARD)
    if onnx is not None:
        results["onnx_difference"] = onnx.difference
    if config.export.dataset:
        _write_dataset(config, f"{building}/{DATASET}")
    results["files"] = files_under(building)
    return place.end(wanted.finished(results))


@contextmanager
def _model(config: RunConfig) -> Iterator[tuple[Path, OnnxFacts | None]]:
    """A folder of the student with its full card and, on request, its ONNX form."""
    layout = RunLayout(config.run_dir)
    distilled = require_complete(Folder(layout.epochs), "distill")
    with local_copy(layout.student) as student, scratch_folder() as local:
        require_recorded(Folder(student))
        for name in Folder(student).files():
            if name not in (MANIFEST, CHECKSUMS, CARD):
                (local / name).symlink_to(Path(student) / name)
        onnx = _write_onnx(config, student, local / "onnx/model.onnx")
        card = model_card(config, distilled, _metrics(config), onnx)
        (local / CARD).write_text(card, encoding="utf-8")
        yield local, onnx


def _write_onnx(config: RunConfig, student: str, path: Path) -> OnnxFacts | None:
    if not config.export.onnx:
        return None
    from llkd.student.model import load_finished

    tokenizer, model = load_finished(student)
    texts = _some_texts(config)
    difference = write_onnx(tokenizer, model, path, texts, config.student.max_length)
    return OnnxFacts(len(texts), difference, tokenizer.pad_token_id, tokenizer.pad_token)


def _some_texts(config: RunConfig) -> list[str]:
    """Texts of the first shard, from the shortest to the longest."""
    rows = Folder(RunLayout(config.run_dir).rows("corpus"))
    texts = sorted(rows.read_shard(min(rows.shards()), [TEXT])[TEXT].to_pylist(), key=len)
    last, count = len(texts) - 1, min(CHECKED_TEXTS, len(texts))
    return [texts[round(number * last / max(count - 1, 1))] for number in range(count)]


def _write_dataset(config: RunConfig, target: str) -> None:
    labelled = require_complete(Folder(RunLayout(config.run_dir).labels("corpus")), "label")
    data = Folder(f"{target}/data")
    facts = write_labelled_rows(config, calibrate(config), len(labelled.results["rows"]), data)
    card = dataset_card(config, facts, labelled_features(config), _metrics(config))
    Folder(target).write_bytes(CARD, card.encode())


def _push(config: RunConfig, place: "_Place", print_line: Callable[[str], None]) -> None:
    export = config.export
    if not export.push_to_hub:
        return
    with ExitStack() as copies:
        for kind, repo in ((MODEL, export.model_repo), (DATASET, export.dataset_repo)):
            if repo is not None:
                local = Path(copies.enter_context(local_copy(f"{place.uri}/{kind}")))
                url = push_folder(local, repo, kind, export.private, export.revision)  # type: ignore[arg-type]
                print_line(f"pushed {kind}: {url}")


def files_under(uri: str) -> dict[str, int]:
    """Size in bytes of every file below a folder, by relative path, without its manifest.

    Raises:
        StorageError: the folder cannot be listed.
    """
    filesystem_, root = filesystem(uri)
    try:
        found = filesystem_.get_file_info(
            fs.FileSelector(root, recursive=True, allow_not_found=True)
        )
    except OSError as error:
        raise StorageError(f"Cannot list {uri}: {error}.") from error
    sizes = {i.path[len(root) + 1 :]: i.size for i in found if i.type == fs.FileType.File}
    return {path: size for path, size in sorted(sizes.items()) if path != MANIFEST}


@dataclass(frozen=True)
class _Place:
    """The folder of an export, and where it is built."""

    uri: str

    @property
    def _building(self) -> str:
        return self.uri if "://" in self.uri else f"{self.uri}.incomplete"

    def finished(self, wanted: Manifest) -> Manifest | None:
        """The manifest of an existing export; None unless it is whole and the one wanted.

        Raises:
            ExportError: the folder is no export, or files in it were added or changed by hand.
        """
        found = self._manifest(self.uri)
        if found is None or not found.complete:
            return None
        recorded, existing = found.results["files"], files_under(self.uri)
        if strange := [path for path, size in existing.items() if recorded.get(path) != size]:
            raise ExportError(
                f"{self.uri} holds {', '.join(strange[:3])}, added or changed after the export, "
                "and would lose it.",
                "Set export.folder to another folder, or delete that one.",
            )
        return found if found.fingerprint == wanted.fingerprint and recorded == existing else None

    def begin(self, wanted: Manifest) -> str:
        """The URI to build at. Files of an interrupted build of the same export are kept, all
        others deleted."""
        found = self._manifest(self._building)
        if found is None or found.complete or found.fingerprint != wanted.fingerprint:
            Folder(self._building).delete()
        Folder(self._building).delete_temporary()
        write_manifest(Folder(self._building), wanted)
        return self._building

    def end(self, finished: Manifest) -> Manifest:
        """Complete the build, and replace an older export by it."""
        write_manifest(Folder(self._building), finished)
        if self._building != self.uri:
            place, old = Path(self.uri), f"{self.uri}.replaced"
            shutil.rmtree(old, ignore_errors=True)  # of a killed command
            try:
                if place.exists():
                    place.rename(old)
                Path(self._building).rename(place)
            except OSError as error:
                raise StorageError(
                    f"Cannot move the export to {self.uri}: {error}.",
                    "Check that its parent folder is writable, and run the same command again.",
                ) from error
            shutil.rmtree(old, ignore_errors=True)
        return finished

    def _manifest(self, uri: str) -> Manifest | None:
        scheme, _, path = uri.rpartition("://")
        if scheme and "/" not in path:
            raise ExportError(
                f"{uri} is a whole bucket.",
                "Set export.folder to a folder in it.",
            )
        filesystem_, root = filesystem(uri)
        try:
            found = read_manifest(Folder(uri))
        except (DamageError, FingerprintError):
            found = None
        deep = filesystem_.type_name == GOOGLE  # see Folder.names
        existing = fs.FileSelector(root, allow_not_found=True, recursive=deep)
        if (found is None or found.stage != STAGE) and filesystem_.get_file_info(existing):
            raise ExportError(
                f"{uri} is not an export, and would be replaced.",
                "Set export.folder to a folder of its own, or delete that one.",
            )
        return found


def described(manifest: Manifest) -> Mapping[str, str]:
    """The summary of an export for the console, by part."""
    files: dict[str, int] = manifest.results["files"]
    parts = {}
    for part in (MODEL, DATASET):
        sizes = [size for path, size in files.items() if path.startswith(f"{part}/")]
        if sizes:
            parts[part] = f"{len(sizes)} files, {sum(sizes) / 1e6:,.1f} MB"
    if "onnx_difference" in manifest.results:
        parts["onnx"] = f"probabilities within {manifest.results['onnx_difference']:.0e}"
    return parts
