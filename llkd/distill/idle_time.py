"""How long a worker's cores, or its accelerator, had nothing to compute, and why."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Waits:
    """Seconds by reason."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, reason: str, seconds: float) -> None:
        """Something was waited for."""
        self.seconds[reason] = self.seconds.get(reason, 0.0) + seconds

    @contextmanager
    def on(self, reason: str) -> Iterator[None]:
        """Everything in the block is waiting."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(reason, time.monotonic() - started)
