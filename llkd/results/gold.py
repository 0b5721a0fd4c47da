"""Gold labels, read for measuring only."""

import numpy as np
import pyarrow as pa

from llkd.store.folder import Folder
from llkd.store.schema import GOLD, RunLayout


def gold_of(
    layout: RunLayout, dataset: str, shard: int, row_n: np.ndarray | pa.ChunkedArray
) -> tuple[np.ndarray, np.ndarray]:
    """The gold of some rows of a shard.

    Returns:
        A mask of the rows that have gold, shape (N,), and the gold classes of these.
    """
    gold_n = Folder(layout.rows(dataset)).read_shard(shard, [GOLD])[GOLD].take(row_n)
    return gold_n.is_valid().to_numpy(), gold_n.drop_null().to_numpy()
