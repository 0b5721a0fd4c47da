"""A run in a bucket, killed and damaged, goes on as one on a disk would."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from llkd.errors import BusyError
from llkd.ingest.stage import ingest
from llkd.store.folder import FileState, Folder
from llkd.store.lock import held
from llkd.store.schema import shard_name
from llkd.store.transfer import local_copy
from llkd.teacher.stage import label
from tests.conftest import SilentTracker, config_maker
from tests.helpers import run_job, started, wait_until, written
from tests.in_process import in_process
from tests.object_store import SECRET, ObjectStore, Request

LABEL_REQUESTS = 3
"""What labelling a shard asks of the store: a HEAD and a GET of its rows, a PUT of its labels."""
FIXED_REQUESTS = 45
"""What the stage asks besides, for however many shards."""
TRIED_AGAIN = 3
"""Requests that a busy machine may answer too late."""


@dataclass
class KilledRun:
    """What was seen of a run in a bucket that was killed, and damaged."""

    bucket: str
    labelling: list[Request]
    """What the label stage asked."""
    refused: str
    """What a second job was told."""
    epoch: FileState
    """The figures of the epoch that was done at the kill."""
    output: str
    """Of the second start."""
    predicted: str
    plain: str
    """A run directory on a disk with the same labels."""


@pytest.fixture(scope="module")
def killed(
    running: ObjectStore, local_ray: None, tmp_path_factory: pytest.TempPathFactory,
    tiny_student: str, corpus_files: tuple[str, str],
) -> KilledRun:  # fmt: skip
    """`kill -9` in mid-training; a cut and a lost object; the same command again; predictions."""
    folder, bucket = tmp_path_factory.mktemp("killed"), running.make_bucket("killed")
    for source in corpus_files:
        Folder(f"{bucket}/data").write_bytes(Path(source).name, Path(source).read_bytes())
    make = config_maker(folder, tiny_student, corpus_files)
    config = written(
        folder / "config.yaml",
        make(
            run_dir=f"{bucket}/run", corpus={"path": f"{bucket}/data/c*.parquet"},
            test={"path": f"{bucket}/data/test.parquet"}, student={"epochs": 3},
        ),
    )  # fmt: skip
    running.requests.clear()

    stats, labels = Folder(f"{bucket}/run/epochs/00"), Folder(f"{bucket}/run/labels")
    checkpoint = Folder(f"{bucket}/run/checkpoints/epoch-0000")
    with started("run", config, **running.environment) as process:
        wait_until(lambda: checkpoint.exists("state.json"), process)
        process.kill()
    labelling = label_stage(running.requests)
    epoch = stats.files()["stats.json"]
    with pytest.raises(BusyError) as refused:
        held(f"{bucket}/run").__enter__()

    assert Folder(f"{bucket}/run/student").names() == []
    Folder(f"{bucket}/run/.lease").delete()  # a minute later
    labels.write_bytes(shard_name(1), labels.read_bytes(shard_name(1))[:-1])
    Folder(f"{bucket}/run/corpus").delete_file(shard_name(2))
    outputs = [run_job(job, config, **running.environment) for job in ("run", "predict")]

    plain = make(run_dir=str(folder / "plain"), test=None)
    with in_process():
        ingest(plain, "corpus", SilentTracker())
        label(plain, ["corpus"], SilentTracker())
    return KilledRun(bucket, labelling, str(refused.value), epoch, *outputs, plain=plain.run_dir)


def label_stage(requests: list[Request]) -> list[Request]:
    """From the end of ingest to the end of the labels."""

    def last(path: str) -> int:
        return max(
            number
            for number, each in enumerate(requests)
            if (each.kind, each.path) == ("PUT", f"killed/run/{path}/manifest.json")
        )

    return requests[last("test") + 1 : max(last("labels"), last("test_labels")) + 1]


@pytest.mark.slow
def test_a_killed_run_in_a_bucket_ends_with_the_labels_of_one_on_a_disk(killed: KilledRun) -> None:
    ours, theirs = Folder(f"{killed.bucket}/run/labels"), Folder(f"{killed.plain}/labels")
    assert ours.shards() == theirs.shards() == set(range(7))
    for shard in range(7):
        assert ours.read_shard(shard).equals(theirs.read_shard(shard))


@pytest.mark.slow
def test_a_killed_run_in_a_bucket_goes_on_where_it_was(killed: KilledRun) -> None:
    stats = Folder(f"{killed.bucket}/run/epochs/00").files()["stats.json"]
    assert stats == killed.epoch
    assert "epoch 3/3 training" in killed.output
    assert "epoch 1/3" not in killed.output
    assert "model.safetensors" in Folder(f"{killed.bucket}/run/student").names()
    metrics = Folder(f"{killed.bucket}/run").read_json("metrics.json")
    assert metrics["teacher"]["rows"] == 420
    assert "report.html" in Folder(f"{killed.bucket}/run").names()
    assert Folder(f"{killed.bucket}/run/.lease").names() == []


@pytest.mark.slow
def test_a_second_job_in_a_bucket_is_refused(killed: KilledRun) -> None:
    assert f"{killed.bucket}/run is in use by process" in killed.refused


@pytest.mark.slow
def test_a_cut_and_a_lost_object_are_made_again(killed: KilledRun) -> None:
    assert "corpus: 1 damaged shard (part-00002.parquet) is made again" in killed.output
    assert "labels: 1 damaged shard (part-00001.parquet) is made again" in killed.output


@pytest.mark.slow
def test_predictions_go_into_the_bucket(killed: KilledRun) -> None:
    assert "student on corpus: 420 rows" in killed.predicted
    predicted = Folder(f"{killed.bucket}/run/predictions/corpus")
    assert sum(predicted.shard_rows(shard) for shard in predicted.shards()) == 420


@pytest.mark.slow
def test_no_object_holds_the_stores_key(killed: KilledRun) -> None:
    with local_copy(killed.bucket) as path:
        files = [file for file in Path(path).rglob("*") if file.is_file()]
        assert len(files) > 50
        assert not [file for file in files if SECRET.encode() in file.read_bytes()]


@pytest.mark.slow
def test_labelling_a_shard_takes_three_requests(killed: KilledRun) -> None:
    beside = ("/.lease", "/checkpoints/")  # by the clock, and by the test that waits
    asked = [each.path for each in killed.labelling if not any(n in each.path for n in beside)]
    of_shards = Counter(path for path in asked if re.search("/(corpus|labels)/part-", path))
    assert len(of_shards) == 2 * 7
    assert 7 * LABEL_REQUESTS <= of_shards.total() <= 7 * LABEL_REQUESTS + TRIED_AGAIN
    assert len(asked) - of_shards.total() <= FIXED_REQUESTS + TRIED_AGAIN
