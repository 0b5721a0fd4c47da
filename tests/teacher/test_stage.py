"""The labelling stage on a real local Ray, with a teacher of known answers."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from llkd.config.run import RunConfig
from llkd.core.calibration import no_calibration
from llkd.errors import (
    ActorError,
    ConfigError,
    FingerprintError,
    IncompleteError,
    RejectLimitError,
    ResourceError,
    TeacherError,
)
from llkd.ingest.stage import ingest
from llkd.pipeline import run_stage
from llkd.store.arrays import matrix
from llkd.store.folder import Folder
from llkd.store.manifest import MANIFEST, Manifest
from llkd.store.schema import RunLayout, shard_name
from llkd.teacher.actor import CONTENT_FREE
from llkd.teacher.calibrate import calibrate
from llkd.teacher.stage import label, manifest_of
from tests.conftest import MakeConfig, SilentTracker
from tests.fakes import KeywordTeacher, text_key
from tests.helpers import calls_in, logprobs_of

pytestmark = pytest.mark.usefixtures("local_ray")


def ingested(config: RunConfig, tracker: SilentTracker) -> RunConfig:
    ingest(config, "corpus", tracker)
    if config.test is not None:
        ingest(config, "test", tracker)
    return config


def labelled(config: RunConfig, tracker: SilentTracker) -> Manifest:
    """Ingest and label the corpus; returns the manifest of the labels."""
    return label(ingested(config, tracker), ["corpus"], tracker)["corpus"]


def all_logprobs(config: RunConfig) -> np.ndarray:
    return np.concatenate([*logprobs_of(RunLayout(config.run_dir).labels("corpus")).values()])


def test_every_row_gets_the_teachers_logprobs(make_config: MakeConfig) -> None:
    import ray

    from llkd.cluster.progress import ProgressTracker

    config = make_config()
    tracker = ProgressTracker.remote()  # type: ignore[attr-defined]
    ingest(config, "corpus", tracker)
    ingest(config, "test", tracker)
    manifests = label(config, ["corpus", "test"], tracker)
    assert [sum(manifests[name].results["rows"]) for name in ("corpus", "test")] == [420, 120]
    layout = RunLayout(config.run_dir)
    rows, labels = Folder(layout.rows("corpus")), Folder(layout.labels("corpus"))
    teacher = KeywordTeacher(config.teacher, config.task)
    for shard in (0, 6):
        expected = teacher.label(
            rows.read_shard(shard)["text"].to_pylist(), [None] * 60, lambda done: None
        )
        table = labels.read_shard(shard)
        assert np.array_equal(matrix(table["logprobs"]), expected.logprobs_nc)
        assert table["row"].to_pylist() == list(range(60))
        mass = np.exp(expected.logprobs_nc.astype(np.float64)).sum(axis=1)
        assert table["label_mass"].to_numpy() == pytest.approx(mass)
    assert manifests["corpus"].results["label_mass"] == pytest.approx(np.exp(-0.5), abs=1e-6)
    state = ray.get(tracker.since.remote(0))[-1]
    assert (state.name, state.rows, state.total) == ("label", 540, 540)


def test_labels_do_not_depend_on_the_shards_or_the_replicas(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    found = []
    for number, (rows, replicas) in enumerate(((420, [1, 1]), (210, [1, 2]), (60, [2, 3]))):
        config = make_config(
            run_dir=str(tmp_path / f"run{number}"), test=None,
            corpus={"rows_per_shard": rows}, teacher={"replicas": replicas},
        )  # fmt: skip
        labelled(config, tracker)
        found.append((all_logprobs(config), calibrate(config).bias_c))
    for logprobs, bias in found[1:]:
        assert np.array_equal(logprobs, found[0][0])
        assert bias == pytest.approx(found[0][1], abs=1e-12)


@pytest.mark.usefixtures("in_process")
def test_refused_rows_are_rejects_and_the_rest_is_labelled(
    make_config: MakeConfig, tracker: SilentTracker
) -> None:
    word = "goal"
    config = make_config(
        test=None, corpus={"id_column": "id"}, teacher={"engine_args": {"refuse": word}},
        max_reject_fraction=0.5,
    )  # fmt: skip
    ingested(config, tracker)
    layout = RunLayout(config.run_dir)
    rows = Folder(layout.rows("corpus"))
    texts = {s: rows.read_shard(s)["text"].to_pylist() for s in rows.shards()}
    manifest = label(config, ["corpus"], tracker)["corpus"]
    refused = {s: [i for i, text in enumerate(texts[s]) if word in text] for s in texts}
    assert manifest.results["rejected"] == sum(map(len, refused.values())) > 0
    for shard, rejected in refused.items():
        kept = Folder(layout.labels("corpus")).read_shard(shard)["row"].to_pylist()
        assert kept == [i for i in range(60) if i not in rejected]
    listed = Folder(layout.rejects("label-corpus")).read_shard(0)
    assert listed["row"].to_pylist() == refused[0]
    assert listed["id"].to_pylist() == [f"corpus-{i}" for i in refused[0]]


@pytest.mark.usefixtures("in_process")
def test_rows_without_a_number_are_rejects(make_config: MakeConfig, tracker: SilentTracker) -> None:
    config = make_config(
        test=None, teacher={"engine_args": {"overflow": "goal"}}, max_reject_fraction=0.5
    )
    manifest = labelled(config, tracker)
    assert manifest.results["rejected"] > 20
    assert np.isfinite(calibrate(config).bias_c).all()
    rejects = Folder(RunLayout(config.run_dir).rejects("label-corpus"))
    assert set(rejects.read_shard(0)["reason"].to_pylist()) == {"not_a_number"}


@pytest.mark.usefixtures("in_process")
def test_too_many_refusals_fail_the_stage(make_config: MakeConfig, tracker: SilentTracker) -> None:
    config = make_config(test=None, teacher={"engine_args": {"refuse": "n"}})
    with pytest.raises(RejectLimitError, match="refused 420 of 420 corpus rows"):
        labelled(config, tracker)


@pytest.mark.usefixtures("in_process")
def test_resuming_labels_only_the_missing_shards(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    calls = tmp_path / "calls"
    config = make_config(test=None, teacher={"engine_args": {"calls": str(calls)}})
    labelled(config, tracker)
    whole = all_logprobs(config)
    assert set(calls_in(calls).values()) == {1}
    labels = Path(RunLayout(config.run_dir).labels("corpus"))
    for name in (shard_name(1), shard_name(4)):
        (labels / name).unlink()
    manifest = Folder(str(labels)).read_json(MANIFEST)
    Folder(str(labels)).write_json(MANIFEST, {**manifest, "complete": False})
    calls.unlink()
    label(config, ["corpus"], tracker)
    rows = Folder(RunLayout(config.run_dir).rows("corpus"))
    again = calls_in(calls).keys()
    missing = [*rows.read_shard(1)["text"].to_pylist(), *rows.read_shard(4)["text"].to_pylist()]
    assert again == {text_key(text) for text in missing}
    assert np.array_equal(all_logprobs(config), whole)
    calls.unlink()
    label(config, ["corpus"], tracker)
    assert not calls.exists()  # complete: the teacher is not even loaded
    # As after a kill once all but the content-free texts were labelled.
    Folder(str(labels)).write_json(MANIFEST, {**manifest, "complete": False})
    content_free = Folder(RunLayout(config.run_dir).labels("content_free"))
    content_free.delete()
    label(config, ["corpus"], tracker)
    assert content_free.shards() == {0}
    assert calls_in(calls).keys() == set(map(text_key, CONTENT_FREE))


def test_nodes_of_a_replica_do_not_shape_the_labels(make_config: MakeConfig) -> None:
    sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    over_nodes = {"nodes": 2, "resources": {"GPU": 2}, "engine_args": sizes}
    asked = Manifest("ingest", {}, "")
    alone, spread = (
        manifest_of(make_config(teacher=teacher), "corpus", asked)
        for teacher in ({"nodes": 1}, over_nodes)
    )
    assert alone.fingerprint == spread.fingerprint


@pytest.mark.usefixtures("in_process")
def test_another_prompt_is_refused_and_more_replicas_are_not(
    make_config: MakeConfig, tracker: SilentTracker
) -> None:
    labelled(make_config(test=None), tracker)
    label(make_config(test=None, teacher={"replicas": [1, 3]}), ["corpus"], tracker)
    with pytest.raises(FingerprintError, match='task.instruction: was "Which topic\\?", now "What'):
        label(make_config(test=None, task={"instruction": "What?"}), ["corpus"], tracker)
    for changed in ({"today": "2027-01-01"}, {"chat_template_kwargs": {"thinking": True}}):
        with pytest.raises(FingerprintError, match=f"teacher.{next(iter(changed))}"):
            label(make_config(test=None, teacher=changed), ["corpus"], tracker)
    label(make_config(test=None, teacher={"min_label_mass": 0.1}), ["corpus"], tracker)
    swapped = {"labels": {"tech": None, "sport": None, "trade": None}}
    with pytest.raises(FingerprintError, match="task.label_order"):
        label(make_config(test=None, task=swapped), ["corpus"], tracker)


def test_a_teacher_that_cannot_load_is_an_error(
    make_config: MakeConfig, tracker: SilentTracker
) -> None:
    config = make_config(test=None, teacher={"engine": "tests.fakes:BrokenTeacher"})
    with pytest.raises(TeacherError, match="cannot load keywords"):
        labelled(config, tracker)
    config = make_config(
        run_dir=f"{config.run_dir}2", test=None, teacher={"engine": "tests.fakes:Nothing"}
    )
    with pytest.raises(ConfigError, match="cannot import tests.fakes:Nothing"):
        labelled(config, tracker)


def test_a_teacher_that_answers_something_else_is_stopped_at_its_first_shard(
    make_config: MakeConfig, tracker: SilentTracker
) -> None:
    elsewhere = {"engine_args": {"elsewhere": 12.0}}
    config = make_config(test=None, teacher=elsewhere)
    with pytest.raises(TeacherError, match="gives the labels 6.1e-06 of its probability"):
        labelled(config, tracker)
    assert not Folder(RunLayout(config.run_dir).labels("corpus")).shards()
    config = make_config(test=None, teacher={**elsewhere, "min_label_mass": 1e-6})
    assert labelled(config, tracker).complete


def test_impossible_resources_are_refused_at_once(
    make_config: MakeConfig, tracker: SilentTracker
) -> None:
    config = make_config(test=None, teacher={"resources": {"GPU": 8}})
    with pytest.raises(ResourceError, match=r"teacher.resources asks for \{GPU: 8\}.*CPU: 4"):
        labelled(config, tracker)


def test_labelling_needs_the_corpus(make_config: MakeConfig, tracker: SilentTracker) -> None:
    config = make_config(test=None)
    shutil.rmtree(config.run_dir, ignore_errors=True)
    with pytest.raises(IncompleteError, match="ingest has not been run"):
        label(config, ["corpus"], tracker)


def test_a_killed_replica_is_replaced_and_its_shard_done_again(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    word = "merger"
    plain = make_config(run_dir=str(tmp_path / "plain"), test=None)
    labelled(plain, tracker)
    for number, arguments in enumerate(({"at": word}, {})):
        deaths = {"deaths": str(tmp_path / f"deaths{number}"), "die": 1, **arguments}
        config = make_config(
            run_dir=str(tmp_path / f"run{number}"), test=None, teacher={"engine_args": deaths}
        )
        labelled(config, tracker)
        assert (tmp_path / f"deaths{number}").stat().st_size > 1
        assert np.array_equal(all_logprobs(config), all_logprobs(plain))


@pytest.mark.slow
def test_deaths_are_bounded_and_reported(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    cases = [
        ({"die": 99}, r"The start of replica \w+ failed 2 times; .*too little memory"),
        ({"die": 99, "at": "merger"}, r'Work on \["corpus", \d\] failed 2 times'),
        ({"die": 0, "broken": "merger"}, "ZeroDivisionError: a bug in the engine"),
    ]
    for number, (arguments, message) in enumerate(cases):
        settings = {"deaths": str(tmp_path / f"deaths{number}"), **arguments}
        teacher = {"engine_args": settings, "max_actor_failures": 1}
        config = make_config(run_dir=str(tmp_path / f"run{number}"), test=None, teacher=teacher)
        with pytest.raises(ActorError, match=message):
            labelled(config, tracker)


@pytest.mark.usefixtures("in_process")
def test_equal_texts_are_labelled_once(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    texts = ["a goal", "a chip", "a goal", "a goal", "a match"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "same.parquet")
    config = make_config(
        test=None, corpus={"path": str(tmp_path / "same.parquet"), "rows_per_shard": 5},
        teacher={"engine_args": {"calls": str(tmp_path / "calls")}},
    )  # fmt: skip
    labelled(config, tracker)
    called = calls_in(tmp_path / "calls")
    assert [called[text_key(text)] for text in ("a goal", "a chip", "a match")] == [1, 1, 1]
    found = all_logprobs(config)
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(found[0], found[3])
    assert not np.array_equal(found[0], found[4])


@pytest.mark.usefixtures("in_process")
def test_another_calibration_needs_no_new_labels(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker, corpus_files: tuple[str, str]
) -> None:
    calls = tmp_path / "calls"
    gold = {"path": corpus_files[1], "label_column": "label", "judge": 0.0}

    def with_calibration(method: str, **settings: Any) -> RunConfig:
        arguments = {"engine_args": {"calls": str(calls)}, "calibration": method, **settings}
        return make_config(test=None, gold=gold, teacher=arguments)

    config = with_calibration("none")
    for dataset in ("corpus", "gold"):
        ingest(config, dataset, tracker)
    label(config, ["corpus", "gold"], tracker)
    before = calls.read_text()
    biases = {}
    for method in ("none", "batch", "contextual", "temperature"):
        config = with_calibration(method)
        label(config, ["corpus", "gold"], tracker)
        biases[method] = calibrate(config)
        assert calibrate(config).bias_c.tolist() == biases[method].bias_c.tolist()
    assert calls.read_text() == before
    assert biases["none"].bias_c.tolist() == [0, 0, 0]
    means = {name: each.apply(all_logprobs(config)).mean(axis=0) for name, each in biases.items()}
    assert means["none"][0] > 0.42  # the fake prefers its first label
    assert means["batch"] == pytest.approx([1 / 3] * 3, abs=1e-3)
    assert biases["temperature"].bias_c.tolist() == biases["batch"].bias_c.tolist()
    assert biases["batch"].temperature == 1
    assert 0.3 < biases["temperature"].temperature < 3
    free = Folder(RunLayout(config.run_dir).labels("content_free")).read_shard(0)
    log_mean = np.log(no_calibration(3).apply(matrix(free["logprobs"])).mean(axis=0))
    assert biases["contextual"].bias_c == pytest.approx(log_mean - log_mean.mean())
    prior = {"sport": 6, "tech": 3, "trade": 1}
    config = with_calibration("batch", prior=prior)
    mean = calibrate(config).apply(all_logprobs(config)).mean(axis=0)
    assert mean == pytest.approx([0.6, 0.3, 0.1], abs=2e-3)


@pytest.mark.usefixtures("in_process")
def test_labels_made_elsewhere_are_joined_by_id(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker, corpus_files: tuple[str, str]
) -> None:
    table = pq.read_table(corpus_files[0]).slice(0, 400)
    pq.write_table(table.select(["id", "label"]), tmp_path / "labels.parquet")
    config = make_config(
        test=None, corpus={"id_column": "id"},
        teacher={"engine": "table", "model": str(tmp_path / "labels.parquet"), "calibration": "none"},
    )  # fmt: skip
    manifest = labelled(config, tracker)
    assert (sum(manifest.results["rows"]), manifest.results["rejected"]) == (400, 20)
    names = list(config.task.labels)
    predicted = [names[i] for i in all_logprobs(config).argmax(axis=1)]
    assert predicted == table["label"].to_pylist()
    pq.write_table(table.select(["id", "label"]).slice(0, 100), tmp_path / "labels.parquet")
    with pytest.raises(FingerprintError, match="teacher.model: was"):
        label(config, ["corpus"], tracker)


@pytest.mark.usefixtures("in_process")
def test_several_teachers_are_combined(make_config: MakeConfig) -> None:
    one = {"engine": "tests.fakes:KeywordTeacher", "model": "one", "resources": {"CPU": 1}}
    two = {**one, "model": "two", "weight": 3, "engine_args": {"refuse": "merger"}}
    config = make_config(teacher=None, teachers=[one, two], test=None, max_reject_fraction=0.9)
    run_stage("ingest", config, Console(file=io.StringIO()))
    run_stage("label", config, Console(file=io.StringIO()))
    parts = [
        (calibrate(alone), Folder(RunLayout(config.run_dir, number).labels("corpus")).read_shard(2))
        for number, alone in enumerate(config.of_each_teacher)
    ]
    folder = Folder(RunLayout(config.run_dir).labels("corpus"))
    combined = folder.read_shard(2)
    assert 0 < combined.num_rows < 60  # without the rows that one of them refused
    rows = combined["row"].to_pylist()
    assert rows == parts[1][1]["row"].to_pylist()
    logs = [
        np.log(calibration.apply(matrix(table["logprobs"])))[
            [table["row"].to_pylist().index(row) for row in rows]
        ]
        for calibration, table in parts
    ]
    expected = (logs[0] + 3 * logs[1]) / 4
    expected -= np.logaddexp.reduce(expected, axis=1, keepdims=True)
    assert matrix(combined["logprobs"]) == pytest.approx(expected, abs=1e-5)
    assert (combined["disagreement"].to_numpy() >= 0).all()

    whole, before = folder.read_json(MANIFEST), folder.files()
    folder.delete_file(shard_name(3))
    folder.write_json(MANIFEST, {**whole, "complete": False})
    run_stage("label", config, Console(file=io.StringIO()))
    assert folder.read_json(MANIFEST) == whole
    assert folder.files()[shard_name(2)] == before[shard_name(2)]  # not written again
    other = make_config(
        teacher=None, teachers=[one, {**two, "weight": 1}], test=None, max_reject_fraction=0.9
    )
    with pytest.raises(FingerprintError, match="teachers.1.weight: was 3.0, now 1.0"):
        run_stage("label", other, Console(file=io.StringIO()))
