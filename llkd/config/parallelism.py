"""Whether a replica of the teacher that is spread over nodes has a worker for each of its GPUs."""

import math
from collections.abc import Mapping
from typing import Any

SIZES = ("tensor_parallel_size", "pipeline_parallel_size")
"""Engine arguments whose product is the GPUs that the model is cut among."""


def parallel_size(engine_args: Mapping[str, Any]) -> int:
    """GPUs that one replica computes on: tensor times pipeline parallelism."""
    return math.prod(int(engine_args.get(name, 1)) for name in SIZES)


def check_nodes(
    nodes: int, resources: Mapping[str, float] | None, engine_args: Mapping[str, Any]
) -> None:
    """Refuse what cannot be spread.

    Args:
        nodes: that a replica is spread over, at least 2.
        resources: what it takes on each; None: what the engine arguments need.
        engine_args: of the engine.

    Raises:
        ValueError: what it takes is not what it computes on.
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
            f"nodes ({nodes}) spreads GPUs: resources.GPU must be how many whole ones a replica "
            f"takes on each node, not {gpus:g}"
        )
    if size != nodes * gpus:
        raise ValueError(
            f"{product} ({size}) must be the GPUs of a replica on all its nodes, nodes ({nodes}) x "
            f"resources.GPU ({gpus:g}): set {SIZES[0]} to {gpus:g} and {SIZES[1]} to {nodes}"
        )
