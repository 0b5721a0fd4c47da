"""Idle time: seconds in which a worker's cores or accelerator had nothing to compute."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Waits:
    """Seconds by reason."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, reason: str, seconds: float) -> None:
        """Add idle seconds."""
        self.seconds[reason] = self.seconds.get(reason, 0.0) + seconds

    @contextmanager
    def on(self, reason: str) -> Iterator[None]:
        """Count the time of the block as idle."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(reason, time.monotonic() - started)
