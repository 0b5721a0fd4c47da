"""Checkpoints: weights and optimiser state as safetensors, the rest as JSON; nothing is pickled."""

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
    """The folder of an epoch's checkpoint; names sort like epochs."""
    return f"epoch-{epoch:04d}"


def checkpoint_epoch(name: str) -> int:
    """The inverse of `checkpoint_name`."""
    return int(name.removeprefix("epoch-"))


def delete_checkpoints(checkpoints: Folder, kept: Collection[str]) -> None:
    """Delete all checkpoints but these."""
    for name in checkpoints.names():
        if name.startswith("epoch-") and name not in kept:
            Folder(f"{checkpoints.uri}/{name}").delete()


def save_checkpoint(
    directory: Path, weights: Tensors, moments: Tensors, state: dict[str, Any]
) -> None:
    """Write a checkpoint into a local directory.

    Args:
        directory: where to.
        weights: what `model_tensors` gave.
        moments: what `optimizer_tensors` gave.
        state: JSON-able.

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
    """Put what `save_checkpoint` wrote where it is kept: file by file, the state last.

    Raises:
        StorageError: it cannot be written.
    """
    upload_folder(directory, f"{checkpoints.uri}/{name}", last=_STATE)


def _apart(tensors: Tensors) -> Tensors:
    """Tensors that share no memory, as safetensors wants them; of tied weights each is kept."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.data_ptr()
        found[name] = tensor.clone() if place in seen else tensor.contiguous()
        seen.add(place)
    return found


def last_checkpoint(checkpoints: Folder, contents: bool = False) -> str | None:
    """The newest checkpoint in a folder that is there whole; None if there is none.

    A checkpoint is stored file by file, and Ray Train learns of it up to some seconds later. So it
    is judged by its own files: one cut short does not count, and one that Ray Train has not heard
    of yet does. For `contents` see `is_whole`.
    """
    for name in reversed(checkpoints.names()):
        if name.startswith("epoch-") and is_whole(checkpoints, name, contents):
            return name
    return None


def is_whole(checkpoints: Folder, name: str, contents: bool = False) -> bool:
    """Whether a checkpoint has all its files, at their full sizes; with `contents` also whether
    these are what was written."""
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
    """Fill model and optimiser with what `save_checkpoint` wrote; returns the state."""
    load_model_tensors(model, load_file(directory / _MODEL))
    if optimizer is not None:
        load_optimizer_tensors(model, optimizer, load_file(directory / _OPTIMIZER))
    state: dict[str, Any] = json.loads((directory / _STATE).read_text())
    return state
