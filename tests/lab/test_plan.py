"""The plan: what it prints, its warnings, and a sample on a real local Ray."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from llkd.cluster import actor_pool, connection
from llkd.config.run import RunConfig
from llkd.errors import ActorError, ConfigError, TeacherError
from llkd.lab.cost_model import Estimate
from llkd.lab.plan.plan import TeacherSpeed, run_plan, workload_of
from llkd.lab.plan.show import short, show_teacher, warnings_of
from llkd.lab.plan.student import StudentSample
from llkd.lab.plan.teacher import TeacherSample, sample_rows, stored_bytes
from llkd.lab.table_sizes import RECORD_BYTES
from llkd.preflight import require_inputs
from llkd.store.folder import Folder
from tests.conftest import MadeRun, MakeConfig

LOG = np.log

SAMPLE = TeacherSample(
    rows=100,
    refused=1,
    seconds=10.0,
    logprobs_nc=LOG([[0.6, 0.2, 0.1], [0.1, 0.7, 0.1], [0.2, 0.1, 0.6]] * 33).tolist(),
    prompts=["Which topic?\nText: a\nLabel:"],
    verbalizer="word (asked for), 1 question a row",
    prompt_tokens=[50] * 100,
    text_tokens=[10] * 60 + [30] * 40,
    max_text_tokens=20,
    computed_tokens=2000,
)

FAST = StudentSample(500.0, 100.0, 0.0, 0)


def shown(config: RunConfig, sample: TeacherSample) -> str:
    screen = io.StringIO()
    show_teacher(config, sample, Console(file=screen, width=120))
    return screen.getvalue()


def test_what_the_sample_shows_of_a_teacher(make_config: MakeConfig) -> None:
    text = shown(make_config(), SAMPLE)
    assert "10.0 rows/s a replica, 200 tokens/s" in text  # 100 rows and 2,000 tokens in 10 s
    assert "50 (95 %: 50) tokens" in text
    assert "40% are cut to 20" in text
    assert "Refused   1 of 100 rows" in text
    assert "Text: a\nLabel:(the answer begins here)" in text
    assert "the labels have 90.00% of the teacher's probability" in text
    assert "Warning" not in text


def test_warning_signs(make_config: MakeConfig) -> None:
    config = make_config()
    fine = np.eye(3)[[0, 1, 2] * 33]
    assert warnings_of(config, SAMPLE, fine) == []
    (one,) = warnings_of(config, SAMPLE, np.eye(3)[[0] * 90 + [1] * 9])
    assert "91% of the rows are labelled 'sport'" in one
    low = replace(SAMPLE, logprobs_nc=LOG([[0.1, 0.05, 0.05]] * 99).tolist())
    (mass,) = warnings_of(config, low, fine)
    assert "gives the labels 20% of its probability" in mass
    (cut,) = warnings_of(config, replace(SAMPLE, text_tokens=[30] * 60 + [1] * 40), fine)
    assert "60% of the texts are cut to 20 tokens" in cut


def test_the_sample_is_spread_over_the_corpus(make_config: MakeConfig) -> None:
    source = make_config(corpus={"id_column": "id"}).corpus
    total, sampled = sample_rows(source, 64, seed=0)
    assert total == 420
    assert 32 <= len(sampled) <= 64
    numbers = sorted(int(text.split("n")[-1]) for text, _ in sampled)
    assert sorted(int(str(own).removeprefix("corpus-")) for _, own in sampled) == numbers
    assert numbers[0] < 120
    assert numbers[-1] > 300
    assert sample_rows(source, 64, seed=0) == (total, sampled)
    assert len(sample_rows(make_config().corpus, 100_000, seed=0)[1]) == 420


@pytest.mark.usefixtures("local_ray", "in_process")
def test_a_plan_estimates_a_whole_run_and_leaves_nothing_behind(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    screen = io.StringIO()
    config = make_config(
        plan={"rows": 64, "corpus_rows": 42_000, "price_per_hour": 3.6, "cpus": 2}, test=None
    )
    found = run_plan(config, Console(file=screen, width=160))
    text = screen.getvalue()
    assert "sampled; extrapolated to 42,000" in text
    assert "rows/s a replica" in text
    assert "A whole run, 42,000 rows" in text
    assert "epoch 2 train" in text
    assert not (tmp_path / "run").exists()
    assert found["shards"] == 700
    stages = {stage["name"]: stage for stage in found["stages"]}
    for name in ("label", "epoch 1 score", "epoch 1 train"):
        stage = stages[name]
        assert stage["seconds"] == pytest.approx(stage["rows"] / stage["rate"])
        assert stage["cost"] == pytest.approx(stage["seconds"] * 0.001)
    assert 5 < found["setup"]["student_tokens"] < 20  # words of a text and its ends
    assert found["setup"]["student_parameters"] > 1000


@pytest.mark.usefixtures("local_ray")
@pytest.mark.usefixtures("local_ray")
def test_a_plan_fails_where_the_teacher_answers_something_else(make_config: MakeConfig) -> None:
    config = make_config(teacher={"engine_args": {"elsewhere": 12.0}}, plan={"rows": 20})
    screen = io.StringIO()
    with pytest.raises(TeacherError, match=r"teacher\.min_label_mass \(0\.001\)"):
        run_plan(config, Console(file=screen, width=120))
    assert "Prompt" in screen.getvalue() or "Teacher" in screen.getvalue()


def test_rates_that_are_given_are_not_measured(make_config: MakeConfig) -> None:
    plan = {
        "teacher_rows_per_second": 50, "score_rows_per_second": 500, "train_rows_per_second": 100,
        "selected_fraction": 0.5, "corpus_rows": 1e9,
    }  # fmt: skip
    config = make_config(
        plan=plan, teacher={"model": "nowhere"}, student={"model": "nowhere", "workers": 2}
    )
    require_inputs("plan", config)
    found = run_plan(config, Console(file=io.StringIO()))
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert stages["label"]["seconds"] == pytest.approx((1e9 + 120) / 50)
    assert stages["epoch 2 train"]["seconds"] == pytest.approx(0.5e9 / 200)
    with pytest.raises(ConfigError, match="set both score_rows_per_second"):
        make_config(plan={"score_rows_per_second": 1})


def test_all_the_gpus_of_a_replica_are_counted(
    monkeypatch: pytest.MonkeyPatch, make_config: MakeConfig
) -> None:
    monkeypatch.setattr(connection, "nodes", lambda: [{"GPU": 8.0, "CPU": 64.0}])
    plan = {
        "teacher_rows_per_second": 100, "score_rows_per_second": 500, "train_rows_per_second": 100,
        "corpus_rows": 360_000,
    }  # fmt: skip
    sizes = {"tensor_parallel_size": 8, "pipeline_parallel_size": 2}
    config = make_config(
        plan=plan, test=None, teacher={"nodes": 2, "replicas": [1, 2], "engine_args": sizes, "resources": None},
        student={"workers": 1, "epochs": 1}, selection={"policy": "all"},
    )  # fmt: skip
    screen = io.StringIO()
    found = run_plan(config, Console(file=screen, width=160))
    # An hour of a replica of 16 GPUs, by two; then a worker trains for an hour, another predicts.
    predicted = 360_000 / 500 / 3600
    assert found["worker_hours"] == pytest.approx(16 + 1 + predicted)
    assert "2 x 16 GPU" in screen.getvalue()
    # A teacher of one GPU and half the speed beside it: two hours more.
    one = TeacherSpeed(50, 2, 0.0, 1.0)
    both = workload_of(config, 360_000, [TeacherSpeed(100, 2, 0.0, 16.0), one], FAST, 100.0)
    hours = 360_000 / both.teacher_rate / 3600
    assert hours * both.teacher_gpus == pytest.approx(1 * 16 + 2 * 1)
    # On a machine without GPUs, a plan for one with GPUs counts GPUs.
    monkeypatch.setattr(connection, "nodes", lambda: [{"CPU": 2.0}])
    assert workload_of(config, 360_000, [one], FAST, 100.0).on_gpus
    assert not workload_of(config, 360_000, [TeacherSpeed(50, 2, 0.0)], FAST, 100.0).on_gpus


def test_files_and_bytes_are_those_of_a_finished_run(finished_run: MadeRun) -> None:
    share = Folder(str(finished_run.folder / "epochs/01")).read_json("stats.json")["fraction"]
    config = finished_run.make(
        corpus=finished_run.sections["corpus"], plan={"selected_fraction": share}
    )
    _, sampled = sample_rows(config.corpus, 420, seed=0)
    speed = TeacherSpeed(100, 1, 0)
    workload = workload_of(config, 420, [speed], FAST, stored_bytes(sampled, config))
    stages = {stage.name: stage for stage in Estimate(config, workload).stages}
    folders = {
        "ingest": "corpus", "label": "labels", "prepare": "epochs/pseudo_labels",
        "epoch 1 score": "epochs/00/uncertainty", "epoch 2 select": "epochs/01/selection",
    }  # fmt: skip
    for name, folder in folders.items():
        shards = list((finished_run.folder / folder).glob("part-*.parquet"))
        assert stages[name].files == len(shards) == 7
        size = sum(shard.stat().st_size for shard in shards)
        # Much of so small a shard is Parquet's own.
        assert size == pytest.approx(stages[name].bytes - 7 * RECORD_BYTES, rel=0.2), name
    tests = [finished_run.folder / name for name in ("test", "test_labels", "test_predictions")]
    shards = [shard for folder in tests for shard in folder.glob("part-*.parquet")]
    assert stages["evaluate"].files == len(shards)
    size = sum(shard.stat().st_size for shard in shards)
    assert size == pytest.approx(stages["evaluate"].bytes, rel=0.2)


def test_numbers_are_short() -> None:
    values = (0, 0.25, 12.34, 999, 9999, 12_345, 3.21e6, 5e9, 7e13)
    assert [short(value) for value in values] == [
        "", "0.25", "12.3", "999", "9,999", "12.3 k", "3.21 M", "5 G", "70 T",
    ]  # fmt: skip


def test_a_sample_is_labelled_by_a_replica_on_all_its_nodes(
    monkeypatch: pytest.MonkeyPatch, make_config: MakeConfig
) -> None:
    def begin(*arguments: object, **options: object) -> None:
        raise ActorError(str(options))

    monkeypatch.setattr(actor_pool, "run_on_actors", begin)
    monkeypatch.setattr(connection, "require_resources", lambda *asked: required.append(asked))
    required: list[object] = []
    resources = {"GPU": 1.0}
    sizes = {"tensor_parallel_size": 2}
    teacher = {"nodes": 2, "resources": resources, "engine_args": sizes}
    with pytest.raises(ActorError) as caught:
        run_plan(make_config(teacher=teacher), Console(file=io.StringIO()))
    assert str(caught.value) == str({"pool": (1, 1), "resources": resources, "nodes": 2})
    assert required == [(resources, "teacher.resources", 2)]
