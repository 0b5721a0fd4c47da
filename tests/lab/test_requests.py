"""The requests of a run to an object store, counted: those of each shard are those of the cost model."""

from collections import Counter
from pathlib import Path

import pytest

from llkd.lab.cost_model import REQUESTS, Requests
from llkd.results.report import write_report
from llkd.store.folder import Folder
from tests.conftest import MakeConfig, without_report
from tests.helpers import run
from tests.object_store import ObjectStore

EPOCHS = 2
FEW, MANY = 10, 20
"""Shards of the 420 rows of the corpus."""


def expected(*stages: str) -> Requests:
    """The sum over some stages of the cost model."""
    return Requests(*(sum(numbers) for numbers in zip(*(REQUESTS[s] for s in stages), strict=True)))


EPOCH = ("score", "select", "train", "unique")
STAGES = {
    "ingest": expected("ingest"),
    "label": expected("label"),
    "distill": expected("prepare", *EPOCH * EPOCHS),
    "evaluate": expected("evaluate"),
    "report": expected("report", *["report of an epoch"] * EPOCHS),
}


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray", "in_process")
def test_requests_by_stage_and_shard(
    make_config: MakeConfig, corpus_files: tuple[str, str]
) -> None:
    counted: dict[int, dict[str, Counter[str]]] = {}
    with ObjectStore() as store, store.in_environment(), without_report():
        for shards in (FEW, MANY):
            bucket = store.make_bucket(f"shards-{shards}")
            data = Folder(f"{bucket}/data")
            for file in corpus_files:
                data.write_bytes(Path(file).name, Path(file).read_bytes())
            config = make_config(
                run_dir=f"{bucket}/run",
                corpus={
                    "path": f"{data.uri}/corpus.parquet", "label_column": "label",
                    "rows_per_shard": 420 // shards,
                },
                test={"path": f"{data.uri}/test.parquet", "label_column": "label"},
                student={"epochs": EPOCHS},
            )  # fmt: skip
            counted[shards] = {}
            for stage in STAGES:
                store.requests.clear()
                if stage == "report":
                    write_report(config)
                else:
                    run(stage, config)
                counted[shards][stage] = store.counted()

    def per_shard(stage: str, *kinds: str) -> float:
        few, many = (counted[shards][stage] for shards in (FEW, MANY))
        return sum(many[kind] - few[kind] for kind in kinds) / (MANY - FEW)

    found = {
        stage: Requests(per_shard(stage, "GET", "HEAD"), per_shard(stage, "PUT"))  # type: ignore[arg-type]
        for stage in STAGES
    }
    assert found == STAGES
