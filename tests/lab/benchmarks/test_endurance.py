"""The long run of the label stage, shortened, and what is made of its samples."""

from pathlib import Path

import pyarrow as pa
import pytest

from llkd.errors import IncompleteError
from llkd.lab.benchmarks import endurance
from llkd.lab.benchmarks.endurance import Sample
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout


@pytest.mark.usefixtures("local_ray")
def test_every_row_once_though_actors_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endurance, "SAMPLE_SECONDS", 0.05)
    config = endurance.make_config(tmp_path, shards=24, rows_per_shard=16, fail=0.1)
    result = endurance.measure(config, lambda line: None)
    assert (result["shards"], result["rows"]) == (24, 384)
    assert result["failed"] > 0
    assert 0 < result["rejected"] < 20
    processes = {sample["process"].split()[0] for sample in result["samples"]}
    assert processes == {"driver", "actor"}
    assert min(sample["files"] for sample in result["samples"]) > 0
    assert "calls failed" in endurance.table(result)
    endurance.plot(result, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")

    labels = Folder(RunLayout(config.run_dir).labels("corpus"))
    labels.write_shard(3, pa.concat_tables([labels.read_shard(3)] * 2))
    with pytest.raises(IncompleteError, match="Shard 3 of .* of 16"):
        endurance.check_rows(config, [16] * 24)


def samples(process: str, first: int, mib: float, files: float) -> list[Sample]:
    """A process that grows by so much in 1,000 shards, each 10 shards, for 500 of them."""
    return [
        Sample(first + n, process, 200 + mib * n / 1000, int(50 + files * n / 1000), 9)
        for n in range(0, 500, 10)
    ]


def test_growth_by_hand() -> None:
    flat = [*samples("driver", 100, 4, 0), *samples("actor 1", 0, 8, 0)]
    found = endurance.summary([*flat, *samples("actor 2", 400, 8, 0)], 600)
    assert found["growth"]["driver"] == pytest.approx({"mib": 4, "files": 0, "threads": 0})
    assert found["growth"]["actors"] == pytest.approx({"mib": 8, "files": 0, "threads": 0})
    assert found["flat"]


@pytest.mark.parametrize(("process", "mib", "files"), [("driver", 30, 0), ("actor 2", 0, 900)])
def test_what_grows_is_not_flat(process: str, mib: float, files: float) -> None:
    steady = [*samples("driver", 0, 0, 0), *samples("actor 1", 0, 0, 0)]
    assert endurance.summary(steady, 500)["flat"]
    assert not endurance.summary([*steady, *samples(process, 0, mib, files)], 500)["flat"]


def test_a_run_too_short_to_tell_is_not_called_flat() -> None:
    found = endurance.summary(samples("driver", 0, 0, 0), 500)
    assert found["growth"]["actors"] is None
    assert not found["flat"]
