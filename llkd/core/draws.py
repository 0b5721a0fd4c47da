"""Random numbers as a function of the position in the corpus, independent of shards and processes."""

import numpy as np


def uniform_by_position(position_n: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Uniform numbers in [0, 1), one per position, by the SplitMix64 mixer: shape (N,)."""
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.uint64(seed) + _GOLDEN) + np.uint64(epoch) * _GOLDEN)
        mixed_n = _mix(position_n.astype(np.uint64) * _GOLDEN + key)
    return (mixed_n >> np.uint64(11)).astype(np.float64) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: np.ndarray | np.uint64) -> np.ndarray:
    z: np.ndarray = np.asarray(value, dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
