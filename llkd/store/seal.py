"""A checksum of a whole Parquet file within it."""

import zlib

import pyarrow as pa

_SEAL_BYTES = 4
"""The CRC-32 of a shard, without itself: it stands before the footer. Other readers of Parquet go
where the footer points, and pass over it; checksums of pages would leave out the footer."""


def _footer_at(data: bytes | memoryview) -> int:
    """Where the footer of a Parquet file starts, by what its end says."""
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def sealed(parquet: pa.Buffer) -> tuple[bytes, int]:
    """A Parquet file with the seal in it, and the CRC-32 of both."""
    data = memoryview(parquet)
    at = _footer_at(data)
    pages, footer = data[:at], data[at:]
    crc = zlib.crc32(pages)
    seal = zlib.crc32(footer, crc).to_bytes(_SEAL_BYTES, "little")
    return b"".join((pages, seal, footer)), zlib.crc32(footer, zlib.crc32(seal, crc))


def is_sealed(data: bytes) -> bool:
    """Whether a shard is what was written."""
    at = _footer_at(data)
    if at < _SEAL_BYTES:
        return False
    view = memoryview(data)
    crc = zlib.crc32(view[at:], zlib.crc32(view[: at - _SEAL_BYTES]))
    return crc == int.from_bytes(view[at - _SEAL_BYTES : at], "little")
