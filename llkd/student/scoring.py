"""Scores texts: the student's distribution over the labels.

A thread tokenises texts and batches them by length while the model computes the previous batches.
On a GPU, several batches are in flight: nothing waits for a result before its window is complete.
"""

import copy
import zlib
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from llkd.errors import StudentError
from llkd.student.prefetch import Ahead
from llkd.student.tokens import encode, pad

TOKENS_PER_BATCH = 2048
"""Padded tokens per batch on a CPU: enough to keep the cores busy, few enough for the caches."""
TOKENS_PER_BATCH_GPU = 65536
WINDOW_ROWS = 1024
"""Texts sorted by length together."""
BATCHES_AHEAD = 8

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class _Batch(Generic[K]):
    """Rows of a window: B rows of at most T tokens."""

    key: K
    row_b: np.ndarray
    """Their indices in the window."""
    inputs: dict[str, torch.Tensor]
    """Tensors of shape (B, T)."""
    last: bool
    """Whether it is the last batch of its window."""


class _Window(Generic[K]):
    """A window whose batches are all launched; its result is being copied to the CPU."""

    def __init__(
        self, key: K, classes: int, parts: Sequence[torch.Tensor], order: Sequence[np.ndarray]
    ) -> None:
        self._key = key
        self._row_n = np.concatenate(order) if order else np.zeros(0, np.int64)
        self._probs = torch.cat(list(parts)) if parts else torch.zeros((0, classes))
        self._copied = None
        if self._probs.is_cuda:
            pinned = torch.empty(self._probs.shape, dtype=self._probs.dtype, pin_memory=True)
            self._probs = pinned.copy_(self._probs, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def fetched(self) -> tuple[K, np.ndarray]:
        """(key, distributions in the order of the texts)."""
        if self._copied is not None:
            self._copied.synchronize()
        probs_nc = np.empty(self._probs.shape, dtype=np.float32)
        probs_nc[self._row_n] = self._probs.numpy()
        return self._key, probs_nc


def scoring_copy(model: torch.nn.Module, bfloat16: bool) -> torch.nn.Module:
    """A copy of a model for scoring, in the precision of scoring."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    if bfloat16:
        # Only weights: buffers, such as rotary frequencies, need the precision of training.
        for parameter in copied.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return copied


class Scorer:
    """A student ready to score, on one device."""

    def __init__(
        self,
        tokenizer: Any,
        model: torch.nn.Module,
        *,
        max_length: int,
        dropout_passes: int = 0,
        compiled: bool = False,
        tokens_per_batch: int | None = None,
        features: int | None = None,
    ) -> None:
        """
        Args:
            tokenizer: the student's.
            model: the model, in its scoring precision; see `scoring_copy`.
            max_length: maximum tokens of a text.
            dropout_passes: number of passes with dropout whose mean is the result; 0 for one pass
                without dropout.
            compiled: use torch.compile.
            tokens_per_batch: padded tokens per batch; by default chosen by device.
            features: for a model without head: the width of its output, which is returned as it is.

        Raises:
            StudentError: `dropout_passes` is set, but the model has no dropout.
        """
        self._tokenizer = tokenizer
        self._model = model.eval()
        classes = model.config.num_labels  # type: ignore[union-attr]
        self._width = int(features or classes)  # type: ignore[arg-type]
        self._max_length = max_length
        self._passes = dropout_passes
        self._device = next(model.parameters()).device
        self._on_gpu = self._device.type == "cuda"
        default = TOKENS_PER_BATCH_GPU if self._on_gpu else TOKENS_PER_BATCH
        self._tokens_per_batch = tokens_per_batch or default
        self._forward: Any = torch.compile(model, dynamic=True) if compiled else model
        self._windows_in_flight = 1 if self._on_gpu else 0
        self._waited = 0.0
        self._features = features
        if dropout_passes and not _dropout(model, False):
            raise StudentError(
                "selection.mc_dropout needs a student with dropout; this one has none"
            )

    def taken_wait(self) -> float:
        """Seconds that the model waited for batches since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    def probabilities(
        self, texts: Sequence[str], progress: Callable[[int], None] = lambda done: None
    ) -> np.ndarray:
        """Distributions over the labels: float32, shape (N, C), in the order of the texts.

        Up to rounding, a text's result does not depend on the other texts.
        """
        starts = range(0, len(texts), WINDOW_ROWS)
        windows = ((start, texts[start : start + WINDOW_ROWS]) for start in starts)
        found = [np.zeros((0, self._width), dtype=np.float32)]
        for start, probs_nc in self.stream(windows):
            found.append(probs_nc)
            progress(start + len(probs_nc))
        return np.concatenate(found)

    def stream(
        self, windows: Iterable[tuple[K, Sequence[str]]], seed: int = 0
    ) -> Iterator[tuple[K, np.ndarray]]:
        """(key, distributions) of each window of texts, in the order of the windows.

        Args:
            windows: (key, texts); a thread reads them some batches ahead.
            seed: of the dropout, together with the window's key.
        """
        parts: list[torch.Tensor] = []
        order: list[np.ndarray] = []
        in_flight: deque[_Window[K]] = deque()
        with Ahead(self._batches(windows), BATCHES_AHEAD) as batches, torch.inference_mode():
            for batch in batches:
                if self._passes and not parts:
                    torch.manual_seed(zlib.crc32(f"{seed}/{batch.key}".encode()))
                if len(batch.row_b):
                    parts.append(self._score(batch.inputs))
                    order.append(batch.row_b)
                if batch.last:
                    in_flight.append(_Window(batch.key, self._width, parts, order))
                    parts, order = [], []
                if len(in_flight) > self._windows_in_flight:
                    yield in_flight.popleft().fetched()
            self._waited += batches.waited
            while in_flight:
                yield in_flight.popleft().fetched()

    def _batches(self, windows: Iterable[tuple[K, Sequence[str]]]) -> Iterator[_Batch[K]]:
        for key, texts in windows:
            encoded = encode(self._tokenizer, texts, self._max_length)
            length_n = np.fromiter(map(len, encoded["input_ids"]), np.int64, count=len(texts))
            order_n, done = np.argsort(-length_n, kind="stable"), 0
            if not len(texts):
                yield _Batch(key, order_n, {}, True)
            while done < len(texts):
                # Longest first: the first row determines the padded length of its batch.
                rows = max(self._tokens_per_batch // max(int(length_n[order_n[done]]), 1), 1)
                row_b = order_n[done : done + rows]
                done += len(row_b)
                inputs = pad(self._tokenizer, encoded, row_b)
                if self._on_gpu:
                    inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
                yield _Batch(key, row_b, inputs, done == len(texts))

    def _score(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Distributions of a batch, float32, shape (B, C), on the device."""
        inputs = {name: t.to(self._device, non_blocking=True) for name, t in inputs.items()}
        if not self._passes:
            found = self._forward(**inputs).logits.float()
            return found if self._features else torch.softmax(found, dim=-1)
        _dropout(self._model, True)
        total = sum(
            torch.softmax(self._forward(**inputs).logits.float(), dim=-1)
            for _ in range(self._passes)
        )
        _dropout(self._model, False)
        return torch.as_tensor(total) / self._passes


def _dropout(model: torch.nn.Module, on: bool) -> bool:
    """Turn the dropout layers on or off; returns whether there are any."""
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    for layer in layers:
        layer.train(on)
    return bool(layers)
