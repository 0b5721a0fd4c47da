"""Embeds a checksum in a Parquet file."""

import zlib

import pyarrow as pa

_SEAL_BYTES = 4
"""The seal is the CRC-32 of the rest of the file. It precedes the footer; other Parquet readers skip it,
because they follow the offsets in the footer. Parquet's own page checksums do not cover the footer."""


def _footer_at(data: bytes | memoryview) -> int:
    """The offset of the footer, from its length at the end of the file."""
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def sealed(parquet: pa.Buffer) -> tuple[bytes, int]:
    """A Parquet file with the seal embedded, and the CRC-32 of the result."""
    data = memoryview(parquet)
    at = _footer_at(data)
    pages, footer = data[:at], data[at:]
    crc = zlib.crc32(pages)
    seal = zlib.crc32(footer, crc).to_bytes(_SEAL_BYTES, "little")
    return b"".join((pages, seal, footer)), zlib.crc32(footer, zlib.crc32(seal, crc))


def is_sealed(data: bytes) -> bool:
    """Whether the content of a file matches its seal."""
    at = _footer_at(data)
    if at < _SEAL_BYTES:
        return False
    view = memoryview(data)
    crc = zlib.crc32(view[at:], zlib.crc32(view[: at - _SEAL_BYTES]))
    return crc == int.from_bytes(view[at - _SEAL_BYTES : at], "little")
