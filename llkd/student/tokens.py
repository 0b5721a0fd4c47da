"""Tokenises texts for the student, and pads tokens to tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from llkd.core.prompts import CHARACTERS_PER_TOKEN


def encode(tokenizer: Any, texts: Sequence[str], max_length: int) -> Mapping[str, list[list[int]]]:
    """The tokenizer's output for each text, cut to `max_length` tokens."""
    if not texts:
        return {"input_ids": []}
    max_characters = max_length * CHARACTERS_PER_TOKEN
    encoded: Mapping[str, list[list[int]]] = tokenizer(
        [text[:max_characters] for text in texts], truncation=True, max_length=max_length
    )
    return encoded


def pad(
    tokenizer: Any, encoded: Mapping[str, list[list[int]]], row_b: Sequence[int] | np.ndarray
) -> dict[str, torch.Tensor]:
    """B rows as tensors of shape (B, T), padded to the longest one."""
    return dict(
        tokenizer.pad(
            {key: [values[row] for row in row_b] for key, values in encoded.items()},
            return_tensors="pt",
        )
    )
