"""Texts as the student's tokens, and tokens as padded tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

CHARACTERS_PER_TOKEN = 32
"""A token stands for so many characters at most, in running text: a long text need not be
tokenised to its end to find its first tokens."""


def encode(tokenizer: Any, texts: Sequence[str], max_length: int) -> Mapping[str, list[list[int]]]:
    """The tokenizer's output for each text, cut to `max_length` tokens."""
    if not texts:
        return {"input_ids": []}
    most = max_length * CHARACTERS_PER_TOKEN
    encoded: Mapping[str, list[list[int]]] = tokenizer(
        [text[:most] for text in texts], truncation=True, max_length=max_length
    )
    return encoded


def pad(
    tokenizer: Any, encoded: Mapping[str, list[list[int]]], row_b: Sequence[int] | np.ndarray
) -> dict[str, torch.Tensor]:
    """Some rows as tensors of shape (B, T), padded to the longest of them."""
    return dict(
        tokenizer.pad(
            {key: [values[row] for row in row_b] for key, values in encoded.items()},
            return_tensors="pt",
        )
    )
