"""How the corpus is distributed over the workers that score it."""

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llkd.distill.shard_queue import PIECE_ROWS, SMALLEST_PIECE, Piece, PieceQueue


def drain(queue: PieceQueue, order: list[int]) -> tuple[dict[int, np.ndarray], list[Piece]]:
    """Workers take and finish pieces in this order, repeatedly, until no rows are left."""
    whole, taken, free = {}, [], set(order)
    while free:
        for worker in order:
            piece = queue.take(worker)
            if piece is None:
                free.discard(worker)
                continue
            taken.append(piece)
            found = queue.done(piece, np.arange(piece.start, piece.stop))
            if found is not None:
                whole[piece.shard] = found
    return whole, taken


def test_a_worker_keeps_to_its_shard_while_there_are_others() -> None:
    queue = PieceQueue([4 * PIECE_ROWS] * 2, [0, 1])
    assert {queue.take(0).shard for _ in range(3)} == {0}  # type: ignore[union-attr]
    assert {queue.take(1).shard for _ in range(2)} == {1}  # type: ignore[union-attr]


def test_a_free_worker_helps_a_slow_one_with_its_last_pieces() -> None:
    queue = PieceQueue([4 * PIECE_ROWS], [0])
    first, help_ = queue.take(0), queue.take(1)
    assert first == Piece(0, 0, PIECE_ROWS)
    assert help_ == Piece(0, PIECE_ROWS, 2 * PIECE_ROWS)
    assert queue.take(0) == Piece(0, 2 * PIECE_ROWS, 3 * PIECE_ROWS)


def test_a_helper_keeps_to_the_shard_that_it_has_read() -> None:
    queue = PieceQueue([4 * PIECE_ROWS, 5 * PIECE_ROWS], [0, 1])
    assert {queue.take(0).shard, queue.take(1).shard} == {0, 1}  # type: ignore[union-attr]
    assert [queue.take(2).shard for _ in range(3)] == [1, 1, 1]  # type: ignore[union-attr]


def test_pieces_shrink_towards_the_end_so_that_workers_end_together() -> None:
    rows = [4 * PIECE_ROWS]
    whole, taken = drain(PieceQueue(rows, [0], workers=2), [0, 1])
    assert np.array_equal(whole[0], np.arange(rows[0]))
    sizes = [piece.stop - piece.start for piece in taken]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == PIECE_ROWS
    assert sizes[-1] <= SMALLEST_PIECE
    assert all(size >= SMALLEST_PIECE / 2 for size in sizes)

    # One worker takes a second a row, another three.
    speed, free, ended, queue = {0: 1, 1: 3}, {0: 0.0, 1: 0.0}, [0.0], PieceQueue(rows, [0], 2)
    while free:
        worker = min(free, key=free.__getitem__)
        piece = queue.take(worker)
        if piece is None:
            ended.append(free.pop(worker))
        else:
            free[worker] += speed[worker] * (piece.stop - piece.start)
    assert abs(ended[-1] - ended[-2]) <= 3 * SMALLEST_PIECE


def run(
    queue: PieceQueue, random: Random, workers: int, dies: bool
) -> tuple[dict[int, np.ndarray], list[Piece]]:
    """(shards that came back whole, pieces taken), until no rows are left or a worker dies."""
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


@given(
    st.randoms(), st.lists(st.integers(0, 3 * PIECE_ROWS), min_size=1, max_size=6),
    st.integers(1, 4), st.booleans(),
)  # fmt: skip
def test_every_row_once_whatever_the_order(
    random: Random, rows: list[int], workers: int, dies: bool
) -> None:
    written: dict[int, np.ndarray] = {}
    if dies:  # the group fails, and the next one scores the shards that are not there
        written |= run(PieceQueue(rows, range(len(rows)), workers), random, workers, True)[0]
    left = [shard for shard in range(len(rows)) if shard not in written]
    whole, taken = run(PieceQueue(rows, left, workers), random, workers, False)
    assert sum(piece.stop - piece.start for piece in taken) == sum(rows[shard] for shard in left)
    assert all(piece.stop - piece.start <= PIECE_ROWS for piece in taken)
    assert not written.keys() & whole.keys()
    written |= whole
    assert written.keys() == set(range(len(rows)))
    assert all(np.array_equal(written[shard], np.arange(n)) for shard, n in enumerate(rows))
