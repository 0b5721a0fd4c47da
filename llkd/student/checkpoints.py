"""Checkpoints: weights and optimiser state as safetensors, the rest as JSON; no pickles."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llkd.errors import DamageError, StorageError
from llkd.store.folder import Folder
from llkd.store.transfer import upload_folder
from llkd.student.parallel import (
    Tensors,
    load_model_tensors,
    load_optimizer_tensors,
)

_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"


def checkpoint_name(epoch: int) -> str:
    """The folder name of an epoch's checkpoint; names sort in the order of epochs."""
    return f"epoch-{epoch:04d}"


def checkpoint_epoch(name: str) -> int:
    """The inverse of `checkpoint_name`."""
    return int(name.removeprefix("epoch-"))


def delete_checkpoints(checkpoints: Folder, kept: Collection[str]) -> None:
    """Delete all checkpoints except those in `kept`."""
    for name in checkpoints.names():
        if name.startswith("epoch-") and name not in kept:
            Folder(f"{checkpoints.uri}/{name}").delete()


def save_checkpoint(
    directory: Path, weights: Tensors, moments: Tensors, state: dict[str, Any]
) -> None:
    """Write a checkpoint into a local directory.

    Args:
        directory: the local directory.
        weights: the result of `model_tensors`.
        moments: the result of `optimizer_tensors`.
        state: further state, serialisable as JSON.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        save_file(_apart(weights), directory / _MODEL)
        save_file(_apart(moments), directory / _OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"Cannot write a checkpoint into {directory}: {error}.",
            "Make room there, or set TMPDIR to another directory. The same command then resumes after "
            "the last finished epoch.",
        ) from error
    folder = Folder(str(directory))
    sizes = {name: (directory / name).stat().st_size for name in (_MODEL, _OPTIMIZER)}
    crcs = {name: folder.crc32(name) for name in (_MODEL, _OPTIMIZER)}
    folder.write_json(_STATE, {**state, "sizes": sizes, "crc32": crcs})


def store_checkpoint(directory: Path, checkpoints: Folder, name: str) -> None:
    """Upload the files of `save_checkpoint` one by one, the state last.

    Raises:
        StorageError: it cannot be written.
    """
    upload_folder(directory, f"{checkpoints.uri}/{name}", last=_STATE)


def _apart(tensors: Tensors) -> Tensors:
    """Copies tensors that share memory, such as tied weights: safetensors refuses them."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.data_ptr()
        found[name] = tensor.clone() if place in seen else tensor.contiguous()
        seen.add(place)
    return found


def last_checkpoint(checkpoints: Folder, contents: bool = False) -> str | None:
    """The newest whole checkpoint of a folder; None if there is none.

    A checkpoint is stored file by file, and Ray Train records it up to some seconds later. So its
    own files decide: a truncated checkpoint does not count, one that Ray Train has not recorded yet
    does. For `contents` see `is_whole`.
    """
    for name in reversed(checkpoints.names()):
        if name.startswith("epoch-") and is_whole(checkpoints, name, contents):
            return name
    return None


def is_whole(checkpoints: Folder, name: str, contents: bool = False) -> bool:
    """Whether a checkpoint has all its files at their recorded sizes; with `contents` also at their
    recorded checksums."""
    folder = Folder(f"{checkpoints.uri}/{name}")
    try:
        state = folder.read_json(_STATE)
        sizes, crcs = dict(state["sizes"]), dict(state.get("crc32", {}))
    except (DamageError, KeyError, TypeError, ValueError):
        return False
    return (
        bool(sizes)
        and all(folder.size(file) == size for file, size in sizes.items())
        and (not contents or all(folder.crc32(file) == crc for file, crc in crcs.items()))
    )


def load_checkpoint(
    directory: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """Load a checkpoint of `save_checkpoint` into model and optimiser; returns the state."""
    load_model_tensors(model, load_file(directory / _MODEL))
    if optimizer is not None:
        load_optimizer_tensors(model, optimizer, load_file(directory / _OPTIMIZER))
    state: dict[str, Any] = json.loads((directory / _STATE).read_text())
    return state
