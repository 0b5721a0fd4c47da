"""What a run takes, by formulas: numbers worked out by hand."""

import json
from typing import Any

import pytest

from llkd.config.load import parse_config
from llkd.lab.cost_model import DRIVER_MIB, Estimate, Stage, Workload, selected_shares
from llkd.lab.shard_size import ShardSize

SECTIONS: dict[str, dict[str, Any]] = {
    "task": {"instruction": "-", "labels": [f"label {number}" for number in range(10)]},
    "corpus": {"path": "-", "rows_per_shard": 3600},
    "teacher": {"model": "-"},
    "student": {"model": "-", "epochs": 2, "workers": 4},
    "predict": {"replicas": [1, 5]},
    "plan": {"price_per_hour": 2.0, "cpu_price_per_hour": 0.1},
}
# 10,000 shards; the teacher labels 3,600,000 rows an hour and replica, the student scores ten times that.
MEASURED: dict[str, Any] = {
    "rows": 36_000_000, "teacher_rate": 1000, "teacher_replicas": 2, "prompt_tokens": 100,
    "score_rate": 10_000, "train_rate": 5000, "student_tokens": 20, "cpus": 8,
}  # fmt: skip


def estimate(
    *, teachers: int = 1, sections: dict[str, Any] | None = None, **measured: Any
) -> Estimate:
    """The run above, with some sections of its config and some measurements replaced."""
    raw = {"run_dir": "-", **SECTIONS}
    for name, section in (sections or {}).items():
        raw[name] = {**SECTIONS.get(name, {}), **section}
    if teachers > 1:
        raw["teachers"] = [{"model": f"model {number}"} for number in range(teachers)]
        del raw["teacher"]
    return Estimate(parse_config(raw), Workload(**{**MEASURED, **measured}))


def stages(**changes: Any) -> dict[str, Stage]:
    return {stage.name: stage for stage in estimate(**changes).stages}


def test_hours_and_cost_of_each_stage() -> None:
    found = stages()
    hours = {name: stage.seconds / 3600 for name, stage in found.items()}
    assert hours["label"] == pytest.approx(5)  # of two replicas
    assert found["label"].cost == pytest.approx(5 * 2 * 2.0)
    assert found["label"].tokens == 3.6e9
    assert hours["epoch 1 score"] == pytest.approx(0.25)
    assert hours["epoch 1 train"] == pytest.approx(18e6 / 20_000 / 3600)
    assert hours["epoch 2 train"] == pytest.approx(9e6 / 20_000 / 3600)
    assert hours["predict"] == pytest.approx(0.2)
    # Rows at 8 M a second, and 10,000 shards of a millisecond, by 8 CPUs.
    assert found["epoch 1 select"].seconds == pytest.approx((36 / 8 + 10) / 8)
    assert found["epoch 1 select"].cost == pytest.approx(0.1 * (36 / 8 + 10) / 3600)
    gpu_hours = 10 + 2 * 1.0 + 4 * (900 + 450) / 3600 + 2 * 1.0  # refined labels, predictions
    assert estimate().worker_hours == pytest.approx(gpu_hours)
    assert estimate(teacher_gpus=16).worker_hours == pytest.approx(gpu_hours + 10 * 15)
    assert list(found) == [
        "ingest", "label", "prepare", "epoch 1 score", "epoch 1 select", "epoch 1 train",
        "epoch 2 score", "epoch 2 select", "epoch 2 train", "predict",
    ]  # fmt: skip


def test_files_bytes_and_requests_by_shards() -> None:
    found = stages()
    tables = ("ingest", "label", "prepare", "epoch 1 score", "epoch 1 select", "predict")
    assert {found[name].files for name in tables} == {10_000}
    assert found["epoch 1 train"].files == 0
    assert found["label"].bytes == pytest.approx(36e6 * (9.5 + 52) + 10_000 * 1080)
    assert found["epoch 1 select"].bytes == pytest.approx(18e6 * 5.3 + 10_000 * 680)
    # Texts take two reads, labels one write; the folder is listed four times, 1,000 names a page.
    assert (found["label"].reads, found["label"].writes) == (20_000, 10_000 + 40)
    # At the end the selected rows of each epoch are read once more; then the report reads all.
    more = 2 * 20_000 + 40_000 + 2 * 40_000
    assert found["epoch 2 train"].reads == found["epoch 1 train"].reads + more


def test_only_what_a_config_needs_is_counted() -> None:
    assert "epoch 1 score" not in stages(sections={"selection": {"policy": "all"}})
    plain = stages()["epoch 1 select"].bytes
    kept = stages(sections={"student": {"loss": "soft"}})["epoch 1 select"].bytes
    assert kept - plain == pytest.approx(18e6 * (52 + 9.5 - 4.6))
    assert stages(sections={"plan": {"price_per_hour": None}})["label"].cost is None


def test_few_rows_are_trained_on_several_times() -> None:
    """20 steps a pass; 200 in two epochs, the second of which passes over its rows at most four times."""
    found = stages(
        rows=640, sections={"selection": {"policy": "all"}, "student": {"min_steps": 200}}
    )
    assert (found["epoch 1 train"].rows, found["epoch 2 train"].rows) == (5 * 640, 4 * 640)
    assert found["epoch 1 select"].rows == 640


def test_several_teachers_and_a_test_set() -> None:
    found = stages(teachers=2, test_rows=5000)
    assert found["label"].files == 30_000  # those of each, and the combined ones
    assert found["label"].tokens == pytest.approx(2 * 100 * (36e6 + 5000))
    assert found["evaluate"].files == 2 * 3


def test_a_budget_labels_in_rounds_with_a_student_between_them() -> None:
    found = stages(sections={"label": {"budget": 0.5, "rounds": 3, "first": 0.5}})
    assert found["label"].rows == 18e6
    assert found["round 1 epoch 1 score"].rows == 9e6
    assert found["round 2 epoch 1 score"].rows == 13.5e6
    assert found["epoch 1 score"].rows == 18e6
    assert found["round 1 predict"].rows == 36e6
    assert not any(name.startswith("round 3") for name in found)


def test_the_driver_grows_only_with_the_shards() -> None:
    one, ten = estimate(), estimate(rows=360_000_000)
    assert ten.driver_seconds == pytest.approx(10 * one.driver_seconds)
    assert ten.driver_mib - DRIVER_MIB == pytest.approx(10 * (one.driver_mib - DRIVER_MIB))
    larger = estimate(rows=360_000_000, sections={"corpus": {"rows_per_shard": 36_000}})
    assert larger.driver_mib == one.driver_mib
    assert json.loads(json.dumps(ten.to_json()))["shards"] == 100_000


@pytest.mark.parametrize(
    ("rows", "replicas", "workers", "figures"),
    [
        (10**6, 1, 1, "8192 123 1476 0.6 1.4 0.8 2.2 12k 2k 0 300"),
        (10**8, 50, 6, "8192 12208 146496 60 139 76 16 1221k 147k 11 317"),
        (10**10, 1024, 128, "131072 76294 915528 5986 13889 7639 73 7629k 919k 68 409"),
    ],
)
def test_the_table_in_the_readme(rows: int, replicas: int, workers: int, figures: str) -> None:
    """200 rows/s of a teacher, 4,000 scored and 1,000 trained on, in four epochs of `llkd`."""

    def run(rows_per_shard: int) -> Estimate:
        sections = {
            "corpus": {"rows_per_shard": rows_per_shard},
            "student": {"epochs": 4, "workers": workers, "batch_size": 16 * workers},
            "predict": {"replicas": [1, workers]},
        }
        return estimate(
            sections=sections, rows=rows, teacher_rate=200, teacher_replicas=replicas,
            prompt_tokens=300, score_rate=4000, train_rate=1000, cpus=2 * replicas,
        )  # fmt: skip

    found = run(run(1).shard_size.recommended)
    teacher = next(stage for stage in found.stages if stage.name == "label")
    teacher_hours, hours = teacher.seconds * replicas / 3600, found.total("seconds") / 3600
    student_hours = found.worker_hours - teacher_hours
    assert teacher.tokens == 300 * rows

    def rounded(value: float) -> str:
        return f"{value:.1f}" if value < 10 else f"{value:.0f}"

    assert figures.split() == [
        str(found.config.corpus.rows_per_shard), str(found.shards), f"{found.total('files'):.0f}",
        rounded(found.total("bytes") / 1e9), rounded(teacher_hours), rounded(student_hours),
        rounded(hours), f"{found.total('reads') / 1000:.0f}k", f"{found.total('writes') / 1000:.0f}k",
        f"{found.driver_seconds:.0f}", f"{found.driver_mib:.0f}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "actors", "better"),
    [
        (1_000_000, 1, 8192),
        (100_000_000, 64, 8192),
        (100_000, 4, 1024),  # 64 shards wanted: 100,000 / 64 = 1,562
        (1000, 8, 256),
        (10_000_000_000, 64, 131_072),  # 100,000 rows would do
    ],
)
def test_rows_per_shard(rows: int, actors: int, better: int) -> None:
    size = ShardSize(rows, actors, 500, 1000)
    assert size.recommended == better
    assert size.advice(better) is None


def test_a_shard_fits_a_worker_and_a_kill_loses_little() -> None:
    assert ShardSize(10**12, 1, 500, 1e6).recommended == 2**19  # of 500 bytes
    assert ShardSize(10**12, 1, 500, 100).recommended == 131_072  # half an hour


@pytest.mark.parametrize(
    ("rows", "rows_per_shard", "text_bytes", "advice"),
    [
        (10**9, 1000, 500, "1,000,000 shards: with 16,384 there are 61,036"),
        (10_000, 8192, 500, "2 shards for 5 replicas or workers, some of which will idle"),
        (10**9, 2**22, 4000, "16,000 MiB text each: set it to 16,384"),
    ],
)
def test_advice_on_shards(rows: int, rows_per_shard: int, text_bytes: float, advice: str) -> None:
    sections = {"corpus": {"rows_per_shard": rows_per_shard}}
    size = estimate(rows=rows, text_bytes=text_bytes, sections=sections).shard_size
    found = size.advice(rows_per_shard)
    assert found is not None
    assert advice in found


@pytest.mark.parametrize(
    ("selection", "epochs", "shares"),
    [
        ({"policy": "llkd"}, 3, (0.5, 0.25, 0.25)),
        ({"policy": "refined", "parts": 4, "keep": 0.8}, 2, (0.4, 0.4)),
        ({"policy": "random", "fraction": 0.1}, 1, (0.1,)),
        ({"policy": "all"}, 2, (1.0, 1.0)),
    ],
)
def test_the_share_that_is_trained_on(
    selection: dict[str, Any], epochs: int, shares: tuple[float, ...]
) -> None:
    sections = {"selection": selection, "student": {"epochs": epochs}}
    assert selected_shares(estimate(sections=sections).config) == shares
