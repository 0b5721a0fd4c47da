"""Recommends the rows of a shard: few files, busy workers, little work lost by a kill."""

import math
from dataclasses import dataclass

MAX_SHARDS = 100_000
"""More shards cost listings, requests and small files; the driver is tested with this many."""
SHARDS_EACH = 16
"""Shards for each replica or worker, below which some idle at the end."""
DEFAULT_ROWS, MIN_ROWS, MAX_ROWS = 8192, 256, 2**20
"""The default recommendation, and its bounds."""
SHARD_BYTES = 2**28
"""Largest text of a shard: a worker holds two of them."""
SHARD_SECONDS = 1800.0
"""Longest time of a replica for a shard: a kill loses that much."""


@dataclass(frozen=True)
class ShardSize:
    """The size of the shards of a corpus."""

    rows: int
    """Rows of the corpus."""
    actors: int
    """Replicas or workers of the largest stage."""
    text_bytes: float
    """Stored bytes of a row."""
    teacher_rate: float
    """Rows a second of one replica."""

    @property
    def recommended(self) -> int:
        """Rows of a shard, a power of two.

        DEFAULT_ROWS; more if that gives more than MAX_SHARDS; fewer if it gives less than
        SHARDS_EACH for each actor; within SHARD_BYTES and SHARD_SECONDS.
        """
        size = float(DEFAULT_ROWS)
        if self.rows > size * MAX_SHARDS:
            size = 2.0 ** math.ceil(math.log2(self.rows / MAX_SHARDS))
        elif self.rows < size * SHARDS_EACH * self.actors:
            wanted = max(self.rows / (SHARDS_EACH * self.actors), 1)
            size = 2.0 ** math.floor(math.log2(wanted))
        limit = min(
            SHARD_BYTES / max(self.text_bytes, 1), SHARD_SECONDS * self.teacher_rate, MAX_ROWS
        )
        largest = 2.0 ** math.floor(math.log2(max(limit, MIN_ROWS)))
        return int(max(min(size, largest), MIN_ROWS))

    def advice(self, given: int) -> str | None:
        """What to change if there are too many, too few or too large shards; None otherwise.

        Args:
            given: corpus.rows_per_shard.
        """
        better, shards = self.recommended, -(-self.rows // given)
        found = f"corpus.rows_per_shard = {given:,} gives {shards:,} shards"
        change = f"with {better:,} there are {-(-self.rows // better):,}"
        size = given * self.text_bytes
        if shards > MAX_SHARDS and better > given:
            return f"{found}: {change}, and fewer requests."
        if shards < SHARDS_EACH * self.actors / 4 and better < given:
            idle = f"for {self.actors} replicas or workers, some of which will idle"
            return f"{found} {idle}: {change}."
        if given > 2 * better and size > SHARD_BYTES:
            return f"{found} of {size / 2**20:,.0f} MiB text each: set it to {better:,}."
        return None
