"""Measures which number format is faster on this machine."""

import time
from functools import cache

import torch

_ROWS, _INNER, _OUTER, _REPEATS = 512, 576, 1536, 5


@cache
def cpu_prefers_bfloat16() -> bool:
    """Whether bfloat16 matrix products are faster here than float32 ones, by timing both.

    The CPU flag is not enough: not every processor with bfloat16 instructions runs them at full
    speed. Takes tens of milliseconds.
    """
    return _fastest(torch.bfloat16) < _fastest(torch.float32)


def _fastest(dtype: torch.dtype) -> float:
    """Minimum time in seconds of a matrix product with the shape of a typical transformer's."""
    left, right = torch.ones(_ROWS, _INNER, dtype=dtype), torch.ones(_INNER, _OUTER, dtype=dtype)
    torch.matmul(left, right)
    times = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        torch.matmul(left, right)
        times.append(time.perf_counter() - started)
    return min(times)
