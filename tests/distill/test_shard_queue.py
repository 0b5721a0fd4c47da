"""How the corpus is handed to the workers that score it."""

import numpy as np

from llkd.distill.shard_queue import PIECE_ROWS, SMALLEST_PIECE, Piece, PieceQueue


def values(piece: Piece) -> np.ndarray:
    """A number for each row that says where it stands."""
    return np.arange(piece.start, piece.stop) + piece.shard * 1e6


def drain(queue: PieceQueue, order: list[int]) -> tuple[dict[int, np.ndarray], list[Piece]]:
    """Workers take and finish pieces in this order, over and over, until there are none."""
    whole, taken, free = {}, [], set(order)
    while free:
        for worker in order:
            piece = queue.take(worker)
            if piece is None:
                free.discard(worker)
                continue
            taken.append(piece)
            found = queue.done(piece, values(piece))
            if found is not None:
                whole[piece.shard] = found
    return whole, taken


def test_every_row_once_and_whole_shards_come_back() -> None:
    rows = [3 * PIECE_ROWS, 10, 0, PIECE_ROWS + 1]
    whole, taken = drain(PieceQueue(rows, [0, 1, 2, 3]), [0, 1, 0])
    assert whole.keys() == {0, 1, 2, 3}
    for shard, count in enumerate(rows):
        assert np.array_equal(whole[shard], np.arange(count) + shard * 1e6)
    assert sum(piece.stop - piece.start for piece in taken) == sum(rows)
    assert max(piece.stop - piece.start for piece in taken) <= PIECE_ROWS


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


def test_only_the_shards_asked_for() -> None:
    whole, _ = drain(PieceQueue([5, 6, 7], [2]), [0, 1])
    assert whole.keys() == {2}


def test_pieces_that_end_out_of_order_make_the_shard_in_its_order() -> None:
    queue = PieceQueue([3 * PIECE_ROWS], [0])
    pieces = [piece for worker in (0, 1, 0) if (piece := queue.take(worker)) is not None]
    first, second, third = pieces
    assert [queue.done(piece, values(piece)) is None for piece in (third, first)] == [True, True]
    assert np.array_equal(queue.done(second, values(second)), np.arange(3 * PIECE_ROWS))
