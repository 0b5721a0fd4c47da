"""Validates that a multi-node teacher replica has one worker for each of its GPUs."""

import math
from collections.abc import Mapping
from typing import Any

SIZES = ("tensor_parallel_size", "pipeline_parallel_size")
"""Engine arguments whose product is the number of GPUs that the model is sharded over."""


def parallel_size(engine_args: Mapping[str, Any]) -> int:
    """GPUs of one replica: tensor times pipeline parallelism."""
    return math.prod(int(engine_args.get(name, 1)) for name in SIZES)


def check_nodes(
    nodes: int, resources: Mapping[str, float] | None, engine_args: Mapping[str, Any]
) -> None:
    """Check that the parallel sizes match the nodes and their resources.

    Args:
        nodes: nodes of one replica, at least 2.
        resources: its Ray resources on each node; None: derived from the engine arguments.
        engine_args: arguments of the engine.

    Raises:
        ValueError: the resources do not match the parallel sizes.
    """
    product = f"engine_args.{SIZES[0]} x {SIZES[1]}"
    try:
        size = parallel_size(engine_args)
    except (TypeError, ValueError):
        raise ValueError(f"{product} must be whole numbers") from None
    if resources is None:
        if size < 1 or size % nodes:
            raise ValueError(
                f"{product} ({size}) must be a multiple of nodes ({nodes}): set {SIZES[0]} to the "
                f"GPUs of a node and {SIZES[1]} to {nodes}"
            )
        return
    gpus = resources.get("GPU", 0)
    if gpus < 1 or gpus != int(gpus):
        raise ValueError(
            f"with nodes ({nodes}), resources.GPU must be the whole number of GPUs that a replica "
            f"takes on each node, not {gpus:g}"
        )
    if size != nodes * gpus:
        raise ValueError(
            f"{product} ({size}) must be the GPUs of a replica on all its nodes, nodes ({nodes}) x "
            f"resources.GPU ({gpus:g}): set {SIZES[0]} to {gpus:g} and {SIZES[1]} to {nodes}"
        )
