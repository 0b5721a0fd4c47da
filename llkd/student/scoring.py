"""The student's distribution over the labels, for many texts at once."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from llkd.student.model import autocast

TOKENS_PER_BATCH = 4096
"""Padded tokens in a batch on a CPU: enough to keep the cores busy, little enough for caches."""
TOKENS_PER_BATCH_GPU = 65536


class Scorer:
    """A student ready to score, on one device."""

    def __init__(
        self, tokenizer: Any, model: torch.nn.Module, *, max_length: int, bfloat16: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._classes = int(model.config.num_labels)  # type: ignore[union-attr,arg-type]
        self._max_length = max_length
        self._bfloat16 = bfloat16
        self._device = next(model.parameters()).device
        on_gpu = self._device.type == "cuda"
        self._tokens_per_batch = TOKENS_PER_BATCH_GPU if on_gpu else TOKENS_PER_BATCH

    def probabilities(
        self, texts: Sequence[str], progress: Callable[[int], None] = lambda done: None
    ) -> np.ndarray:
        """Distributions over the labels: float32, shape (N, C), in the order of the texts.

        Batches hold texts of like length, so that little is padded; a text's result does not
        depend on its neighbours beyond rounding.
        """
        if not texts:
            return np.zeros((0, self._classes), dtype=np.float32)
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self._max_length)
        lengths_n = np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64, count=len(texts))
        batches, order_n, done = [], np.argsort(-lengths_n, kind="stable"), 0
        was_training = self._model.training
        self._model.eval()
        with torch.inference_mode(), autocast(self._device, self._bfloat16):
            while done < len(order_n):
                # Longest first: the first of a batch tells the padded length of all of it.
                rows = max(self._tokens_per_batch // max(int(lengths_n[order_n[done]]), 1), 1)
                chosen_n = order_n[done : done + rows]
                batch = self._tokenizer.pad(
                    {key: [values[i] for i in chosen_n] for key, values in encoded.items()},
                    return_tensors="pt",
                ).to(self._device)
                logits = self._model(**batch).logits
                batches.append(torch.softmax(logits.float(), dim=-1).cpu())
                done += len(chosen_n)
                progress(done)
        self._model.train(was_training)
        probs_nc = np.empty((len(texts), self._classes), dtype=np.float32)
        probs_nc[order_n] = torch.cat(batches).numpy()
        return probs_nc
