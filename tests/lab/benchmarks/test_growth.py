"""Labelling while actors die, shortened, and the growth computed from samples."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llkd.errors import IncompleteError
from llkd.lab.benchmarks import control, growth
from llkd.lab.benchmarks.growth import Sample
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout


@pytest.mark.usefixtures("local_ray")
def test_every_row_once_though_actors_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "SAMPLE_SECONDS", 0.05)
    told: dict[str, Any] = {}
    config = control.measure_failing(tmp_path, 24, 0.1, told.__setitem__, rows_per_shard=16)
    found = told["processes"]
    assert found["failed"] > 0
    assert 0 < found["rejected"] < 20
    assert {sample["process"].split()[0] for sample in found["samples"]} == {"driver", "worker"}
    assert min(sample["files"] for sample in found["samples"]) > 0
    result = control.summary(24, told)
    assert list(result["phases"]) == ["ingest", "label"]
    assert "calls failed" in control.table({"sizes": [result]})

    labels = Folder(RunLayout(config.run_dir).labels("corpus"))
    whole = labels.read_shard(3)
    for rows, wrong in ((pa.concat_tables([whole] * 2), "twice"), (whole.slice(1), "1 rows lost")):
        labels.write_shard(3, rows)
        with pytest.raises(IncompleteError, match=f"shard 3 has .*{wrong}"):
            growth.check_rows(config, [16] * 24)


def samples(process: str, first: int, mib: float, files: float) -> list[Sample]:
    """A process that grows by `mib` and `files` in 1,000 shards, sampled every 10, for 500."""
    return [
        Sample(first + n, process, 200 + mib * n / 1000, int(50 + files * n / 1000), 9)
        for n in range(0, 500, 10)
    ]


def test_growth_by_hand() -> None:
    flat = [*samples("driver", 100, 4, 0), *samples("worker 1", 0, 8, 0)]
    found = growth.summary([*flat, *samples("worker 2", 400, 8, 0)], 600)
    assert found["growth"]["driver"] == pytest.approx({"mib": 4, "files": 0, "threads": 0})
    assert found["growth"]["actors"] == pytest.approx({"mib": 8, "files": 0, "threads": 0})
    assert found["flat"]


@pytest.mark.parametrize(
    ("more", "flat"),
    [
        ([], True),
        (samples("driver", 0, 30, 0), False),
        (samples("worker 2", 0, 0, 900), False),
    ],
)
def test_only_growth_within_bounds_is_flat(more: list[Sample], flat: bool) -> None:
    steady = [*samples("driver", 0, 0, 0), *samples("worker 1", 0, 0, 0)]
    assert growth.summary([*steady, *more], 500)["flat"] == flat
    too_short = growth.summary([each for each in steady if each.process == "driver"], 500)
    assert too_short["growth"]["actors"] is None
    assert not too_short["flat"]
