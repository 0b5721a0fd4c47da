"""How many rows a shard should have: few files, busy workers, little work lost by a kill."""

import math

MAX_SHARDS = 100_000
"""More shards cost listings, requests and small files; the driver is tested with this many."""
SHARDS_EACH = 16
"""Shards for each replica or worker, below which some idle at the end."""
DEFAULT_ROWS, MIN_ROWS, MAX_ROWS = 8192, 256, 2**20
"""The recommendation unless something speaks against it, and its bounds."""
SHARD_BYTES = 2**28
"""Most text of a shard: a worker holds two of them."""
SHARD_SECONDS = 1800.0
"""Most time of a replica for a shard: a kill loses that much."""


def recommended(rows: int, actors: int, text_bytes: float, teacher_rate: float) -> int:
    """Rows of a shard, a power of two.

    DEFAULT_ROWS; more if that gives more than MAX_SHARDS; fewer if it gives less than SHARDS_EACH
    for each actor; within SHARD_BYTES and SHARD_SECONDS.

    Args:
        rows: of the corpus.
        actors: replicas or workers of the largest stage.
        text_bytes: stored bytes of a row.
        teacher_rate: rows a second of one replica.
    """
    size = float(DEFAULT_ROWS)
    if rows > size * MAX_SHARDS:
        size = 2.0 ** math.ceil(math.log2(rows / MAX_SHARDS))
    elif rows < size * SHARDS_EACH * actors:
        size = 2.0 ** math.floor(math.log2(max(rows / (SHARDS_EACH * actors), 1)))
    limit = min(SHARD_BYTES / max(text_bytes, 1), SHARD_SECONDS * teacher_rate, MAX_ROWS)
    most = 2.0 ** math.floor(math.log2(max(limit, MIN_ROWS)))
    return int(max(min(size, most), MIN_ROWS))


def advice(given: int, better: int, rows: int, actors: int, text_bytes: float) -> str | None:
    """What to change if a corpus has too many, too few or too large shards; None otherwise.

    Args:
        given: corpus.rows_per_shard.
        better: what `recommended` returns.
        rows: of the corpus.
        actors: replicas or workers of the largest stage.
        text_bytes: stored bytes of a row.
    """
    shards = -(-rows // given)
    found = f"corpus.rows_per_shard = {given:,} gives {shards:,} shards"
    change = f"with {better:,} there are {-(-rows // better):,}"
    if shards > MAX_SHARDS and better > given:
        return f"{found}: {change}, and fewer requests."
    if shards < SHARDS_EACH * actors / 4 and better < given:
        return f"{found} for {actors} replicas or workers, some of which will idle: {change}."
    if given > 2 * better and given * text_bytes > SHARD_BYTES:
        return f"{found} of {given * text_bytes / 2**20:,.0f} MiB text each: set it to {better:,}."
    return None
