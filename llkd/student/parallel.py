"""Data-parallel and sharded students, and their full state on one worker."""

from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from llkd.errors import StudentError

Tensors = dict[str, torch.Tensor]


def parallel_model(model: Any, strategy: str, workers: int, device: torch.device) -> Any:
    """The model to train, on its device; its gradients are averaged over the workers.

    Args:
        model: the whole student.
        strategy: `ddp`, or `fsdp` (torch's `fully_shard`, ZeRO stage 3, arXiv 1910.02054).
        workers: number of workers; a single worker gets the plain model.
        device: of this worker.

    Raises:
        StudentError: `fsdp` cannot shard the model, which has no list of layers.
    """
    if workers == 1:
        return model.to(device)
    if strategy == "ddp":
        model.to(device)
        on_gpu = device.type == "cuda"
        return torch.nn.parallel.DistributedDataParallel(
            model, device_ids=[device] if on_gpu else None, gradient_as_bucket_view=True
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Each layer moves to the device when it is sharded: the whole model may not fit there.
    mesh = init_device_mesh(device.type, (workers,))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The longest list of modules: the blocks of a transformer.

    Raises:
        StudentError: the model has no list of modules.
    """
    lists = [list(m) for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    if not lists:
        raise StudentError(
            "student.parallel fsdp cannot shard this model: it has no list of layers",
            "Use ddp.",
        )
    return max(lists, key=len)


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def model_tensors(model: torch.nn.Module) -> Tensors:
    """The full trainable weights, on the CPU. For a sharded model all workers must call it together,
    and only the first gets the weights."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state: Any = get_model_state_dict(model, options=options)
    return dict(state)


def load_model_tensors(model: torch.nn.Module, tensors: Tensors) -> None:
    """The inverse of `model_tensors`; all workers call it together. Frozen weights may be missing."""
    frozen = any(not parameter.requires_grad for parameter in model.parameters())
    options = StateDictOptions(full_state_dict=True, strict=not frozen)
    set_model_state_dict(model, dict(tensors), options=options)


def copy_weights(source: torch.nn.Module, target: torch.nn.Module) -> None:
    """Copy all weights and buffers, one at a time; all workers of a sharded source call it
    together."""
    with torch.no_grad():
        for weight, ours in zip(source.parameters(), target.parameters(), strict=True):
            ours.copy_(weight.full_tensor() if isinstance(weight, DTensor) else weight)
        for buffer, our_buffer in zip(source.buffers(), target.buffers(), strict=True):
            our_buffer.copy_(buffer)


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimiser's moments by `weight|moment`; see `model_tensors`."""
    state: Any = get_optimizer_state_dict(model, optimizer, options=_WHOLE).get("state", {})
    return {
        f"{weight}|{moment}": value
        for weight, moments in state.items()
        for moment, value in moments.items()
    }


def load_optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors
) -> None:
    """The inverse of `optimizer_tensors`; all workers call it together."""
    state: dict[str, dict[str, Any]] = {}
    for key, value in tensors.items():
        weight, _, moment = key.rpartition("|")
        state.setdefault(weight, {})[moment] = value
    groups = get_optimizer_state_dict(model, optimizer)["param_groups"]
    content: Any = {"state": state, "param_groups": groups}
    set_optimizer_state_dict(
        model, optimizer, content, options=StateDictOptions(full_state_dict=True, strict=False)
    )
