"""Tokenises the parts of a prompt: trusted template text, and texts that must not act as template."""

from collections.abc import Sequence
from typing import Any

from llkd.core.prompts import CHARACTERS_PER_TOKEN

USUAL_CHARACTERS_PER_TOKEN = 6
"""Enough for most texts; the others are tokenised again from a longer prefix."""
MARGIN = 8
"""Tokens before a cut that the cut may change; all earlier ones are those of the whole text."""
_ANCHOR = ";"


def encode(tokenizer: Any, text: str, first: bool = False) -> list[int]:
    """Tokenise a trusted part of the prompt, recognising special tokens.

    Args:
        tokenizer: a transformers tokenizer.
        text: the part.
        first: whether it begins the prompt. A tokenizer that prepends a space to every text must
            not do so in the middle of a prompt.
    """
    if first or not _adds_space(tokenizer):
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    before = list(tokenizer(_ANCHOR, add_special_tokens=False)["input_ids"])
    return list(tokenizer(_ANCHOR + text, add_special_tokens=False)["input_ids"])[len(before) :]


def encode_heads(tokenizer: Any, texts: Sequence[str], limit: int) -> list[list[int]]:
    """The first tokens of each text, tokenising as little of it as needed."""
    characters = (limit + MARGIN) * USUAL_CHARACTERS_PER_TOKEN
    found = _encode_plain(tokenizer, [text[:characters] for text in texts])
    # The last tokens before a cut may differ from those of the whole text.
    short = [
        row for row, tokens in enumerate(found)
        if len(texts[row]) > characters and len(tokens) < limit + MARGIN
    ]  # fmt: skip
    prefixes = [texts[row][: limit * CHARACTERS_PER_TOKEN] for row in short]
    for row, tokens in zip(short, _encode_plain(tokenizer, prefixes), strict=True):
        found[row] = tokens
    return [tokens[:limit] for tokens in found]


def encode_ends(tokenizer: Any, texts: Sequence[str], head: int, tail: int) -> list[list[int]]:
    """The first `head` and the last `tail` tokens of each text; all tokens of a text that fits."""
    characters = max(head, tail) * CHARACTERS_PER_TOKEN
    long = [len(text) > 2 * characters for text in texts]
    heads = _encode_plain(
        tokenizer,
        [text[:characters] if cut else text for text, cut in zip(texts, long, strict=True)],
    )
    tails = iter(
        _encode_plain(
            tokenizer, [text[-characters:] for text, cut in zip(texts, long, strict=True) if cut]
        )
    )
    found = []
    for tokens, cut in zip(heads, long, strict=True):
        rest = next(tails) if cut else tokens
        whole = not cut and len(tokens) <= head + tail
        found.append(tokens if whole else tokens[:head] + rest[len(rest) - tail :])
    return found


def _encode_plain(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of texts as they follow "Text:", with a space before the first word."""
    if not texts:
        return []
    space = "" if _adds_space(tokenizer) else " "
    encoded = tokenizer(
        [space + text if text else "" for text in texts],
        add_special_tokens=False,
        split_special_tokens=True,
    )
    return list(encoded["input_ids"])


def _adds_space(tokenizer: Any) -> bool:
    """Whether it prepends a space to every text, as SentencePiece tokenizers often do."""
    tokens = tokenizer(_ANCHOR, add_special_tokens=False)["input_ids"]
    return str(tokenizer.convert_ids_to_tokens(tokens)[0]).startswith("\u2581")
