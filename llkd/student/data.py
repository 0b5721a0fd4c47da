"""The selected rows that one worker trains on, as padded batches.

All workers get the same number of rows and the same batch sizes without communicating: the selected
rows of all shards form one sequence, in an order drawn from the seed, which is cut into equal parts.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llkd.store.arrays import matrix
from llkd.store.folder import Folder
from llkd.store.schema import LABEL, PROBS, ROW, TEXT, WEIGHT
from llkd.student.tokens import encode, pad

WINDOW_BATCHES = 32
"""Batches whose rows are sorted by length together: many enough to pad little, few enough to keep
the order random."""


@dataclass(frozen=True)
class Portion:
    """A worker's part of an epoch's selection."""

    pieces: tuple[tuple[int, int, int], ...]
    """(shard, start, stop): ranges of the shard's selected rows, in their drawn order."""
    rows: int
    dropped: int
    """The remainder of rows that no worker gets; fewer than the workers."""


def portion(selected: Sequence[int], rank: int, workers: int, seed: int) -> Portion:
    """A worker's part of the selection.

    Args:
        selected: number of selected rows of each shard.
        rank: this worker, in [0, workers).
        workers: number of workers.
        seed: of the order of the shards; the same for all workers.
    """
    order = np.random.default_rng(seed).permutation(len(selected))
    ends = np.cumsum(np.asarray(selected, dtype=np.int64)[order])
    total = int(ends[-1]) if len(ends) else 0
    share = total // workers
    low, high = rank * share, (rank + 1) * share
    pieces = []
    for shard, end in zip(order, ends, strict=True):
        first = int(end) - selected[shard]
        start, stop = max(low - first, 0), min(high, int(end)) - first
        if start < stop:
            pieces.append((int(shard), start, stop))
    return Portion(tuple(pieces), share, total - share * workers)


@dataclass(frozen=True)
class Batch:
    """Rows of one forward and backward pass of one worker: B rows of at most T tokens."""

    inputs: dict[str, torch.Tensor]
    """The tokenizer's output, each tensor of shape (B, T)."""
    labels_b: torch.Tensor
    weights_b: torch.Tensor
    targets_bc: torch.Tensor | None = None
    """The teacher's distributions, shape (B, C); None if the loss does not use them."""


@dataclass(frozen=True)
class _Row:
    text: str
    label: int
    weight: float
    target_c: np.ndarray | None
    """The teacher's distribution, shape (C,); None if the loss does not use it."""


SMALLEST_PIECE = 8
"""Minimum rows of a piece of a random batch that is cut by length."""


class SelectedRows:
    """Reads a portion and yields the batches of each optimiser step."""

    def __init__(
        self,
        rows: Folder,
        selection: Folder,
        tokenizer: Any,
        *,
        batch_size: int,
        max_length: int,
        micro_batch_size: int | None = None,
        targets: bool = False,
    ) -> None:
        """
        Args:
            rows: the corpus.
            selection: of the epoch.
            tokenizer: the student's.
            batch_size: rows per optimiser step of this worker.
            max_length: maximum tokens of a text.
            micro_batch_size: maximum rows of a batch; larger steps are split into several.
            targets: whether the loss uses the teacher's distributions.
        """
        self._rows = rows
        self._selection = selection
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._micro = micro_batch_size or batch_size
        self._max_length = max_length
        self._targets = targets

    def steps(self, part: Portion, seed: int, weight_mean: float) -> Iterator[list[Batch]]:
        """The batches of each step, in an order drawn from the seed; all workers pass the same seed.

        Weights are divided by `weight_mean`, so that their mean over the selection is 1.
        """
        window: list[_Row] = []
        shuffle = np.random.default_rng(seed)
        size = self._batch_size * WINDOW_BATCHES
        # Few rows: a batch of similar lengths would hold a class whose texts have that length.
        by_length = part.rows > size
        for piece in part.pieces:
            window.extend(self._read(piece, seed, weight_mean))
            while len(window) >= size:
                yield from self._window_steps(window[:size], shuffle, by_length)
                window = window[size:]
        if window:
            yield from self._window_steps(window, shuffle, by_length)

    def _read(self, piece: tuple[int, int, int], seed: int, weight_mean: float) -> Iterator[_Row]:
        shard, start, stop = piece
        columns = [ROW, LABEL, WEIGHT, *([PROBS] if self._targets else [])]
        chosen = self._selection.read_shard(shard, columns)
        order = np.random.default_rng((seed, shard)).permutation(chosen.num_rows)[start:stop]
        chosen = chosen.take(order)
        texts = self._rows.read_shard(shard, [TEXT])[TEXT].take(chosen[ROW])
        weights = (chosen[WEIGHT].to_numpy() / weight_mean).tolist()
        targets = matrix(chosen[PROBS]) if self._targets else itertools.repeat(None)
        yield from map(_Row, texts.to_pylist(), chosen[LABEL].to_pylist(), weights, targets)

    def _window_steps(
        self, window: list[_Row], shuffle: np.random.Generator, by_length: bool
    ) -> Iterator[list[Batch]]:
        encoded = encode(self._tokenizer, [row.text for row in window], self._max_length)
        order = shuffle.permutation(len(window)).tolist()
        if by_length:
            order.sort(key=lambda i: len(encoded["input_ids"][i]))
        starts = range(0, len(window), self._batch_size)
        # The same draw on every worker: their n-th steps have texts of similar length, so that no
        # worker waits long for another.
        for number in shuffle.permutation(len(starts)):
            chosen = order[starts[number] : starts[number] + self._batch_size]
            micro = self._micro
            if not by_length:
                # Pieces of similar lengths are padded less, and their gradients add up to the same.
                chosen.sort(key=lambda i: len(encoded["input_ids"][i]))
                micro = min(micro, max(-(-len(chosen) // 4), SMALLEST_PIECE))
            yield [
                self._batch(window, encoded, chosen[first : first + micro])
                for first in range(0, len(chosen), micro)
            ]

    def _batch(self, window: list[_Row], encoded: Any, chosen: list[int]) -> Batch:
        return Batch(
            pad(self._tokenizer, encoded, chosen),
            torch.tensor([window[i].label for i in chosen], dtype=torch.long),
            torch.tensor([window[i].weight for i in chosen], dtype=torch.float32),
            torch.from_numpy(np.stack([window[i].target_c for i in chosen]))  # type: ignore[misc]
            if self._targets
            else None,
        )
