"""What a run takes, by formulas: numbers worked out by hand."""

import json
from dataclasses import replace

import pytest

from llkd.lab.cost_model import (
    DRIVER_MIB,
    Setup,
    Stage,
    estimate,
    recommended_rows_per_shard,
    selected_shares,
    shards_advice,
)

# 10,000 shards; the teacher 3,600,000 rows an hour and replica, the student ten times that.
SETUP = Setup(
    rows=36_000_000, rows_per_shard=3600, classes=10, teacher_rate=1000, teacher_replicas=2,
    prompt_tokens=100, epochs=2, score_rate=10_000, train_rate=5000, workers=4,
    predict_replicas=5, student_tokens=20, selected=(0.5, 0.25), cpus=8, price=2.0, cpu_price=0.1,
)  # fmt: skip


def stages(setup: Setup) -> dict[str, Stage]:
    return {stage.name: stage for stage in estimate(setup).stages}


def test_hours_and_money_of_each_stage() -> None:
    found = stages(SETUP)
    hours = {name: stage.seconds / 3600 for name, stage in found.items()}
    assert hours["label"] == pytest.approx(36e6 / 2000 / 3600)  # 5 hours of two replicas
    assert found["label"].cost == pytest.approx(5 * 2 * 2.0)
    assert found["label"].tokens == 3.6e9
    assert hours["epoch 1 score"] == pytest.approx(0.25)
    assert hours["epoch 1 train"] == pytest.approx(18e6 / 20_000 / 3600)
    assert hours["epoch 2 train"] == pytest.approx(9e6 / 20_000 / 3600)
    assert hours["predict"] == pytest.approx(0.2)
    # Rows at 8 M a second, and 10,000 shards of a millisecond, by 8 CPUs.
    assert found["epoch 1 select"].seconds == pytest.approx((36 / 8 + 10) / 8)
    assert found["epoch 1 select"].cost == pytest.approx(0.1 * (36 / 8 + 10) / 3600)
    of_gpus = 10 + 2 * 1.0 + 4 * (900 + 450) / 3600 + 1.0
    assert estimate(SETUP).worker_hours == pytest.approx(of_gpus)
    of_many = of_gpus + 10 * 15
    assert estimate(replace(SETUP, teacher_gpus=16)).worker_hours == pytest.approx(of_many)
    assert list(found) == [
        "ingest", "label", "prepare", "epoch 1 score", "epoch 1 select", "epoch 1 train",
        "epoch 2 score", "epoch 2 select", "epoch 2 train", "predict",
    ]  # fmt: skip


def test_files_bytes_and_requests_by_shards() -> None:
    found = stages(SETUP)
    tables = ("ingest", "label", "prepare", "epoch 1 score", "epoch 1 select", "predict")
    assert {found[name].files for name in tables} == {10_000}
    assert found["epoch 1 train"].files == 0
    assert found["label"].bytes == pytest.approx(36e6 * (9.5 + 52) + 10_000 * 1080)
    selected = 18e6 * 5.3 + 10_000 * 680
    assert found["epoch 1 select"].bytes == pytest.approx(selected)
    # Texts are asked for and read, labels put; the folder is listed four times, 1,000 at once.
    assert (found["label"].reads, found["label"].writes) == (20_000, 10_000 + 40)
    # At the end what each epoch selected is read once more; then the report reads all of it.
    more = 2 * 20_000 + 40_000 + 2 * 40_000
    assert found["epoch 2 train"].reads == found["epoch 1 train"].reads + more


def test_what_a_policy_does_without_is_not_counted() -> None:
    found = stages(replace(SETUP, scores=False))
    assert "epoch 1 score" not in found
    plain = stages(SETUP)["epoch 1 select"].bytes
    kept = stages(replace(SETUP, targets_kept=True))["epoch 1 select"].bytes
    assert kept - plain == pytest.approx(18e6 * (52 + 9.5 - 4.6))
    assert stages(replace(SETUP, price=None))["label"].cost is None


def test_several_teachers_and_a_test_set() -> None:
    found = stages(replace(SETUP, teachers=2, test_rows=5000))
    assert found["label"].files == 30_000  # those of each, and the combined ones
    assert found["label"].tokens == pytest.approx(2 * 100 * (36e6 + 5000))
    assert found["evaluate"].files == 2 * 3


def test_a_budget_labels_in_rounds_with_a_student_between_them() -> None:
    found = stages(replace(SETUP, budget=0.5, rounds=3, first=0.5))
    assert found["label"].rows == 18e6
    assert found["round 1 epoch 1 score"].rows == 9e6
    assert found["round 2 epoch 1 score"].rows == 13.5e6
    assert found["epoch 1 score"].rows == 18e6
    assert found["round 1 predict"].rows == 36e6
    assert not any(name.startswith("round 3") for name in found)


def test_the_driver_grows_with_shards_alone() -> None:
    ten = estimate(replace(SETUP, rows=360_000_000))
    assert ten.driver_seconds == pytest.approx(10 * estimate(SETUP).driver_seconds)
    more = estimate(SETUP).driver_mib - DRIVER_MIB
    assert ten.driver_mib - DRIVER_MIB == pytest.approx(10 * more)
    assert estimate(replace(SETUP, rows=360_000_000, rows_per_shard=36_000)).driver_mib == (
        estimate(SETUP).driver_mib
    )
    assert json.loads(json.dumps(ten.to_json()))["shards"] == 100_000


@pytest.mark.parametrize(
    ("rows", "replicas", "better"),
    [
        (1_000_000, 1, 8192),
        (100_000_000, 64, 8192),
        (100_000, 4, 1024),  # 64 shards wanted: 100,000 / 64 = 1,562
        (1000, 8, 256),
        (10_000_000_000, 64, 131_072),  # 100,000 rows would do
    ],
)
def test_rows_per_shard(rows: int, replicas: int, better: int) -> None:
    setup = replace(SETUP, rows=rows, teacher_replicas=replicas, workers=1, predict_replicas=1)
    assert recommended_rows_per_shard(setup) == better
    assert shards_advice(replace(setup, rows_per_shard=better)) is None


def test_a_shard_fits_a_worker_and_loses_little() -> None:
    vast = replace(SETUP, rows=10**12)
    assert recommended_rows_per_shard(replace(vast, teacher_rate=1e6)) == 2**19  # of 500 bytes
    assert recommended_rows_per_shard(replace(vast, teacher_rate=100)) == 131_072  # half an hour


def test_too_many_and_too_few_shards_are_told() -> None:
    many = shards_advice(replace(SETUP, rows=10**9, rows_per_shard=1000))
    assert many is not None
    assert "1,000,000 shards: with 16,384 there are 61,036" in many
    few = shards_advice(replace(SETUP, rows=10_000, rows_per_shard=8192))
    assert few is not None
    assert "2 shards for 5 replicas or workers" in few
    large = shards_advice(replace(SETUP, rows=10**9, rows_per_shard=2**22, text_bytes=4000))
    assert large is not None
    assert "16,000 MiB text each" in large


def test_the_share_that_is_trained_on() -> None:
    assert selected_shares("llkd", 3) == (0.5, 0.25, 0.25)
    assert selected_shares("refined", 2, parts=4, keep=0.8) == (0.4, 0.4)
    assert selected_shares("random", 1, fraction=0.1) == (0.1,)
    assert selected_shares("all", 2) == (1.0, 1.0)
