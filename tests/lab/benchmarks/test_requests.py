"""What is made of a store's account."""

from collections import Counter

import pytest

from llkd.lab.benchmarks import requests
from llkd.lab.benchmarks.object_store import Request
from llkd.store.schema import RunLayout


def test_an_epoch_is_from_one_stats_json_to_the_next() -> None:
    log = [Request("PUT", "b/run/corpus/part-00000.parquet", "ingest")]
    log += [Request("GET", "b/run/labels/calibration.json", "distill")] * 5
    for epoch in range(requests.EPOCHS):
        stats = Request("PUT", f"b/run/epochs/{epoch:02d}/stats.json", "distill")
        log += [stats, *[Request("GET", "b/run/corpus/part-00000.parquet", "distill")] * 3, stats]
    log += [Request("LIST", "b/run/student/", "distill"), Request("HEAD", "b/x", "evaluate")]
    log += [Request("GET", "b/run/labels/x", stage) for stage in ("evaluate", "report")]
    counted = requests.by_stage(log, RunLayout("s3://b/run"), "s3://b")
    assert counted["ingest"] == {"PUT": 1}
    assert counted["an epoch"] == {"GET": 3, "PUT": 2}
    assert {kind: n for kind, n in counted["distill"].items() if n} == {"GET": 5, "LIST": 1}
    assert counted["report"] == {"GET": 1}
    assert {kind: n for kind, n in counted["evaluate"].items() if n} == {"HEAD": 1}


def test_what_grows_with_the_shards_is_told_from_what_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def count_run(shards: int) -> dict[str, Counter[str]]:
        grows = Counter({"GET": 2 * shards + 7, "PUT": shards, "LIST": 4})
        return dict.fromkeys(requests.STAGES, grows)

    monkeypatch.setattr(requests, "count_run", count_run)
    said: list[str] = []
    result = requests.benchmark_requests([60, 20], said.append)
    assert said == ["20 shards: 426 requests", "60 shards: 1146 requests"]
    assert result["label"]["GET"] == {"per_shard": 2.0, "fixed": 7.0}
    assert result["label"]["LIST"] == {"per_shard": 0.0, "fixed": 4.0}
    line = requests.table(result).splitlines()[2]
    assert line.split() == [
        "label", "2.00", "+7", "0.00", "+0", "1.00", "+0", "0.00", "+4", "0.00", "+0", "3.00", "+11",
    ]  # fmt: skip
