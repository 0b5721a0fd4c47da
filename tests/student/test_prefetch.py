"""Prefetching by a thread."""

import threading
import time
from collections.abc import Iterator

import pytest

from llkd.student.prefetch import Ahead


def test_items_come_in_order_and_no_more_than_asked_are_made_ahead() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    with Ahead(source(), depth=3) as items:
        taken = []
        for item in items:
            taken.append(item)
            time.sleep(0.005)
            assert len(made) <= len(taken) + 3 + 1  # and the one that waits to be put
    assert taken == list(range(20))


def test_an_error_comes_where_the_item_would_have_been() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise KeyError("broken")

    with Ahead(source(), depth=4) as ahead:
        items = iter(ahead)
        assert next(items) == 1
        with pytest.raises(KeyError, match="broken"):
            next(items)


def test_leaving_the_block_ends_the_thread() -> None:
    before = threading.active_count()
    with Ahead(iter(range(10**9)), depth=2) as items:
        assert next(iter(items)) == 0
    assert threading.active_count() == before


def test_waiting_is_measured() -> None:
    def slow() -> Iterator[int]:
        time.sleep(0.2)
        yield 1

    begun = time.perf_counter()
    with Ahead(slow(), depth=1) as items:
        assert list(items) == [1]
        assert 0.1 < items.waited <= time.perf_counter() - begun
