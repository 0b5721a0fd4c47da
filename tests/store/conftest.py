"""An object store for the tests of a module."""

from collections.abc import Iterator

import pytest

from tests.object_store import ObjectStore


@pytest.fixture(scope="module")
def running() -> Iterator[ObjectStore]:
    with ObjectStore() as store, store.in_environment():
        yield store
