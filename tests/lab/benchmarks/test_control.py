"""The driver's work per shard: the calls of the storage, and the figures of the benchmark."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llkd.cluster import actor_pool, shard_tasks
from llkd.lab.benchmarks.control import measure, summary, table
from llkd.lab.benchmarks.stand_ins import without_work
from llkd.store.folder import Folder


@pytest.mark.usefixtures("local_ray")
def test_the_driver_asks_the_storage_less_often_than_there_are_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def counted(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return plain(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    for name in ("_infos", "exists", "read_bytes", "write_bytes", "crc32", "shard_rows"):
        counted(Folder, name)
    blocks: list[int] = []
    items = shard_tasks.data_of

    def cut(runs: Sequence[Any]) -> Any:
        blocks.append(len(runs))
        return items(runs)

    monkeypatch.setattr(shard_tasks, "data_of", cut)
    monkeypatch.setattr(actor_pool, "data_of", cut)
    phases: dict[str, Any] = {}
    measure(tmp_path, 200, phases.__setitem__)
    assert list(phases) == ["ingest", "label", "select", "predict", "check"]
    assert calls["_infos"] > 0
    assert max(calls.values()) < 100, calls
    # Ray Data has a block, and the driver some milliseconds, for each run of shards.
    assert max(blocks) < 100


def test_the_replaced_names_exist() -> None:
    with without_work():
        pass  # mock.patch refuses a name that its module lacks


def test_the_figures_of_a_size() -> None:
    phases = {name: {"cpu": 2.0, "wall": 3.0, "mib": 10.0} for name in ("a", "b", "c", "d", "e")}
    found = summary(10_000, phases)
    assert found["driver_ms"] == pytest.approx(1.0)
    assert found["growth_mib"] == 50
    head, first, *_ = table({"sizes": [found]}).splitlines()
    assert head.endswith("10,000 shards")
    assert first.split() == ["a", "0.200", "ms", "3.0", "s", "10", "MiB"]
