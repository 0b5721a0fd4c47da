"""Prefetches items in a thread."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Generic, Self, TypeVar

T = TypeVar("T")
_END = object()
STOP_POLL_SECONDS = 0.1


class Ahead(Generic[T]):
    """Iterates over a source that a thread reads, up to `depth` items ahead.

    Use it in a `with` block: leaving it ends the thread. An exception of the source is raised at
    the position of the item that failed.
    """

    def __init__(self, source: Iterable[T], depth: int) -> None:
        self._queue: queue.Queue[object] = queue.Queue(maxsize=depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(source,), daemon=True)
        self.waited = 0.0
        """Seconds that the consumer waited for items."""
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._stopped.set()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        while True:
            started = time.monotonic()
            item = self._queue.get()
            self.waited += time.monotonic() - started
            if item is _END:
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item  # type: ignore[misc]

    def _read(self, source: Iterable[T]) -> None:
        try:
            for item in source:
                if not self._put(item):
                    return
            self._put(_END)
        except BaseException as error:
            self._put(_Failure(error))

    def _put(self, item: object) -> bool:
        """Whether the item was queued; false once the consumer has left the block."""
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=STOP_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
