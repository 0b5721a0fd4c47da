"""Any order in which workers take and finish pieces, and lose their way."""

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llkd.distill.shard_queue import PIECE_ROWS, Piece, PieceQueue

shards_ = st.lists(st.integers(0, 3 * PIECE_ROWS), min_size=1, max_size=6)


def run(
    queue: PieceQueue, random: Random, workers: int, dies: bool
) -> tuple[dict[int, np.ndarray], list[Piece]]:
    """(shards that came back whole, pieces taken), until nothing is left or a worker is lost."""
    whole: dict[int, np.ndarray] = {}
    taken: list[Piece] = []
    busy: list[Piece] = []
    steps = ["take", "done", "die"] if dies else ["take", "done"]
    while True:
        step = random.choice(steps)
        if step == "die":
            return whole, taken
        piece = queue.take(random.randrange(workers)) if step == "take" or not busy else None
        if piece is not None:
            taken.append(piece)
            busy.append(piece)
        elif busy:
            piece = busy.pop(random.randrange(len(busy)))
            values_n = queue.done(piece, np.arange(piece.start, piece.stop))
            if values_n is not None:
                assert piece.shard not in whole
                whole[piece.shard] = values_n
        else:
            return whole, taken


@given(st.randoms(), shards_, st.integers(1, 4), st.booleans())
def test_every_row_once_whatever_the_order(
    random: Random, rows: list[int], workers: int, dies: bool
) -> None:
    written: dict[int, np.ndarray] = {}
    if dies:  # the group fails, and the next one scores the shards that are not there
        written |= run(PieceQueue(rows, range(len(rows)), workers), random, workers, True)[0]
    left = [shard for shard in range(len(rows)) if shard not in written]
    whole, taken = run(PieceQueue(rows, left, workers), random, workers, False)
    assert sum(piece.stop - piece.start for piece in taken) == sum(rows[shard] for shard in left)
    assert not written.keys() & whole.keys()
    written |= whole
    assert written.keys() == set(range(len(rows)))
    assert all(np.array_equal(written[shard], np.arange(n)) for shard, n in enumerate(rows))
