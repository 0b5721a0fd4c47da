"""Converts between Arrow columns and numpy arrays: distributions and label names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def fixed_lists(
    values_nc: np.ndarray, numbers: type[np.floating[Any]] = np.float32
) -> pa.FixedSizeListArray:
    """A matrix of shape (N, C) as N lists of C numbers."""
    flat = np.ascontiguousarray(values_nc, dtype=numbers).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), values_nc.shape[1])


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """The inverse of `fixed_lists`: shape (N, C)."""
    width = column.type.list_size
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):  # an empty column has no chunk to combine
        lists = lists.chunk(0) if lists.num_chunks else pa.array([], column.type)
    return lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def named(class_n: np.ndarray, names: Sequence[str]) -> pa.DictionaryArray:
    """Class indices, shape (N,), as dictionary-encoded label names."""
    return pa.DictionaryArray.from_arrays(pa.array(class_n, pa.int32()), pa.array(names))


def class_indices(column: pa.ChunkedArray, names: Sequence[str]) -> np.ndarray:
    """The inverse of `named`, for any order of the column's dictionaries."""
    return pc.index_in(column.cast(pa.string()), value_set=pa.array(names)).to_numpy()
