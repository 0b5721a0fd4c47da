"""The device on which a process computes."""

from typing import TYPE_CHECKING

from llkd.errors import ResourceError

if TYPE_CHECKING:
    import torch


def own_device() -> "torch.device":
    """The first GPU that this process sees, or the CPU if Ray has reserved none for it.

    Raises:
        ResourceError: Ray has reserved a GPU, which would idle: torch cannot use it.
    """
    import ray
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    reserved = ray.get_gpu_ids() if ray.is_initialized() else []
    if reserved:
        raise ResourceError(
            f"Ray has reserved the GPU {reserved[0]} of this node, but torch {torch.__version__} cannot use it",
            "Install a torch with CUDA that fits the driver (pip install '.[gpu]'), or set the stage's resources to "
            "{CPU: 8} to run without GPUs.",
        )
    return torch.device("cpu")
