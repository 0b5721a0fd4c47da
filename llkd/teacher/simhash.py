"""SimHash: texts that share most of their words fall into the same cell."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BATCH_ROWS = 2048
"""Texts split into words at a time, which bounds the memory."""
MAX_BITS = 16


def text_cells(texts: pa.ChunkedArray, bits: int) -> np.ndarray:
    """The SimHash (Charikar 2002) of each text's lower-cased words: int64, shape (N,).

    The more words two texts share, the more bits of their hashes agree; near-duplicates agree in
    all or nearly all.

    Args:
        texts: N strings.
        bits: length of the hash, at most 16. Cells are in [0, 2**bits).
    """
    parts = [
        _cells(texts.slice(start, BATCH_ROWS), bits) for start in range(0, len(texts), BATCH_ROWS)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def _cells(texts: pa.ChunkedArray, bits: int) -> np.ndarray:
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(pc.utf8_lower(texts)))
    words = words.combine_chunks() if isinstance(words, pa.ChunkedArray) else words
    row_w = pc.list_parent_indices(words).to_numpy()
    coded = pc.list_flatten(words).dictionary_encode()
    word_w = coded.indices.to_numpy()
    sign_db = _signs(coded.dictionary.to_pylist(), bits)
    cell_n = np.zeros(len(texts), dtype=np.int64)
    for bit in range(bits):
        total_n = np.bincount(row_w, weights=sign_db[word_w, bit], minlength=len(texts))
        cell_n |= (total_n > 0).astype(np.int64) << bit
    return cell_n


def _signs(words: list[str], bits: int) -> np.ndarray:
    """The hash bits of each of D words, as -1 and 1: shape (D, bits)."""
    digests = b"".join(
        hashlib.blake2b(word.encode(), digest_size=MAX_BITS // 8).digest() for word in words
    )
    bytes_db = np.frombuffer(digests, dtype=np.uint8).reshape(len(words), MAX_BITS // 8)
    return np.unpackbits(bytes_db, axis=1)[:, :bits] * 2.0 - 1.0
