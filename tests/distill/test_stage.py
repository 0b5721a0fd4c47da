"""The epoch loop on a real local Ray, with a real (tiny) student in real Ray Train workers."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from llkd.config.run import RunConfig
from llkd.core.statistics import on_grid
from llkd.distill.epoch_stats import read_stats
from llkd.distill.holdout import make_validation
from llkd.distill.policy import policy_of
from llkd.distill.pseudo_labels import make_pseudo_labels, teacher_statistics
from llkd.distill.refine import read_refinement
from llkd.distill.selection import Selector
from llkd.distill.stage import distill
from llkd.errors import FingerprintError, StorageError
from llkd.ingest.stage import ingest
from llkd.lab.compare.linear_probe import CheapRun, Problem
from llkd.results.evaluate import measure_held_out
from llkd.results.save_student import export
from llkd.store.arrays import fixed_lists, matrix
from llkd.store.folder import Folder
from llkd.store.schema import UNCERTAINTY_SCHEMA, RunLayout, shard_starts, with_probs
from llkd.teacher.calibrate import calibrate
from llkd.teacher.stage import label
from tests.conftest import MakeConfig, SilentTracker, config_maker
from tests.fakes import text_key
from tests.in_process import in_process

pytestmark = pytest.mark.usefixtures("local_ray")


def labelled(config: RunConfig, tracker: Any) -> RunConfig:
    with in_process():
        ingest(config, "corpus", tracker)
        label(config, ["corpus"], tracker)
    return config


def distilled(config: RunConfig, tracker: Any) -> dict[str, Any]:
    labelled(config, tracker)
    return dict(distill(config, calibrate(config), live_tracker()).results)


def selector_of(config: RunConfig, shards: int = 7) -> Selector:
    return Selector(config, shard_starts([420 // shards] * shards), policy_of(config))


def live_tracker() -> Any:
    """Workers need a tracker that pickles."""
    from llkd.cluster.progress import ProgressTracker

    return ProgressTracker.remote()  # type: ignore[attr-defined]


def selected_rows(config: RunConfig, epoch: int) -> dict[str, tuple[int, float]]:
    """(label, weight) of the rows that an epoch selected, by text."""
    layout = RunLayout(config.run_dir)
    rows, selection = Folder(layout.rows("corpus")), Folder(layout.selection(epoch))
    found = {}
    for shard in sorted(selection.shards()):
        texts = rows.read_shard(shard)["text"].to_pylist()
        for entry in selection.read_shard(shard).to_pylist():
            found[texts[entry["row"]]] = (entry["label"], entry["weight"])
    return found


def student_weights(config: RunConfig) -> dict[str, np.ndarray]:
    return load_file(Path(RunLayout(config.run_dir).student) / "model.safetensors")


@pytest.fixture(scope="module")
def finished(
    local_ray: None, tmp_path_factory: pytest.TempPathFactory, tiny_student: str,
    corpus_files: tuple[str, str],
) -> tuple[RunConfig, MakeConfig]:  # fmt: skip
    """A finished run of two workers and three epochs, not to be changed."""
    make = config_maker(tmp_path_factory.mktemp("finished"), tiny_student, corpus_files)
    config = make(**SETTINGS)
    distilled(config, SilentTracker())
    export(config)
    return config, make


SETTINGS: dict[str, Any] = {
    "test": None,
    "corpus": {"label_column": "label"},
    "student": {"workers": 2, "epochs": 3},
    "selection": {"class_floor": 0.0, "refine": True},  # by default not: the encoder is random
}

Finished = tuple[RunConfig, MakeConfig]


def copy_of(finished: Finished, tmp_path: Path, **sections: Any) -> RunConfig:
    """The finished run in a directory of its own."""
    config, make = finished
    shutil.copytree(config.run_dir, tmp_path / "copy")
    return make(**{**SETTINGS, **sections}, run_dir=str(tmp_path / "copy"))


def test_an_epoch_leaves_what_the_design_says(finished: Finished) -> None:
    config, _ = finished
    layout = RunLayout(config.run_dir)
    results = Folder(layout.epochs).read_json("manifest.json")["results"]
    refinement = read_refinement(config)
    assert refinement is not None
    assert results["relabelled_fraction"] == refinement["changed"]
    assert results["prior"] == refinement["prior"]
    for shares in (results["prior"]["estimate"], results["prior"]["imposed"]):
        assert list(shares) == config.task.label_names
        assert sum(shares.values()) == pytest.approx(1)
    for epoch in range(3):
        stats = read_stats(config, epoch)
        assert Folder(layout.uncertainty(epoch)).shards() == set(range(7))
        assert Folder(layout.selection(epoch)).shards() == set(range(7))
        for shard in range(7):
            table = Folder(layout.uncertainty(epoch)).read_shard(shard)
            assert table["row"].to_pylist() == list(range(60))
            values = table["uncertainty"].to_numpy()
            assert ((values >= 0) & (values <= 1)).all()
        assert stats["selected"] == len(selected_rows(config, epoch)) > 0
        assert stats["training_loss"] > 0
        assert stats["dropped"] == stats["selected"] % 2  # of two workers
        waiting = stats["waiting"]
        assert 0 <= waiting["share"] < 1
        assert waiting["share"] > 0 or not any(waiting["seconds"].values())
    stats = [read_stats(config, epoch) for epoch in range(3)]
    visits = sum(entry["selected"] - entry["dropped"] for entry in stats)
    assert results["row_visits_fraction"] == pytest.approx(visits / (420 * 3))
    union = set().union(*(selected_rows(config, epoch) for epoch in range(3)))
    assert results["unique_rows_fraction"] == pytest.approx(len(union) / 420)
    assert [p.name for p in Path(layout.checkpoints).glob("epoch-*")] == ["epoch-0002"]


def test_selection_follows_the_thresholds_written_down(finished: Finished) -> None:
    config, _ = finished
    selector = selector_of(config)
    for epoch in range(3):
        stats = read_stats(config, epoch)
        thresholds = stats["thresholds"]
        for shard in range(7):
            row, signals = selector.signals(shard, epoch)
            assert signals.uncertainty_n is not None
            bar = np.array(thresholds["confidence_c"])[signals.label_n]
            chosen = signals.confidence_n >= bar - 1e-6
            if epoch > 0:
                bar = np.array(thresholds["uncertainty_c"])[signals.label_n]
                chosen &= signals.uncertainty_n >= bar - 1e-6
            table = Folder(RunLayout(config.run_dir).selection(epoch)).read_shard(shard)
            assert table["row"].to_pylist() == row[chosen].tolist()
    assert read_stats(config, 0)["thresholds"]["uncertainty_c"] == [None] * 3


def test_pseudo_labels_are_the_calibrated_argmax(finished: Finished) -> None:
    config, _ = finished
    layout = RunLayout(config.run_dir)
    for shard in (0, 3):
        logprobs = matrix(Folder(layout.labels("corpus")).read_shard(shard)["logprobs"])
        expected = calibrate(config).apply(logprobs).argmax(axis=1)
        table = Folder(layout.selection(0)).read_shard(shard)
        assert table["label"].to_pylist() == expected[table["row"].to_numpy()].tolist()


@pytest.mark.parametrize(
    "policy",
    ["llkd", "random", "teacher_confidence", "student_uncertainty", "refined", "freematch",
     "confident_learning"],
)  # fmt: skip
def test_the_same_selection_for_1_2_and_7_shards(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker, policy: str
) -> None:
    found = []
    for shards in (1, 2, 7):
        config = make_config(
            run_dir=str(tmp_path / f"run{shards}"), test=None,
            corpus={"rows_per_shard": 420 // shards}, selection={"policy": policy},
        )  # fmt: skip
        labelled(config, tracker)
        selector = selector_of(config, shards)
        make_pseudo_labels(
            selector.config, selector.shards, calibrate(config), selector.keeps_teacher_probs
        )
        layout = RunLayout(config.run_dir)
        # The student's uncertainty, as if scored: a number that depends on the text alone.
        for shard in range(shards):
            texts = Folder(layout.rows("corpus")).read_shard(shard)["text"].to_pylist()
            values = on_grid(np.array([int(text_key(text), 16) % 1000 / 1000 for text in texts]))
            write_uncertainty(config, 1, shard, values)
        sums = selector.uncertainty_sums(range(shards), 1)
        selector.select(1, teacher_statistics(selector.config), sums, None)
        found.append(selected_rows(config, 1))
    assert 20 < len(found[0]) < 400
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for text, (label_, weight) in other.items():
            assert (label_, weight) == found[0][text]


def test_the_floor_counts_rows_that_are_trained_on_in_a_cheap_run_too(
    make_config: MakeConfig, tracker: SilentTracker
) -> None:
    config = make_config(
        test=None, student={"validation_fraction": 0.5},
        selection={"policy": "teacher_confidence", "class_floor": 0.6},
    )  # fmt: skip
    labelled(config, tracker)
    selector = selector_of(config)
    calibration = calibrate(config)
    make_pseudo_labels(config, selector.shards, calibration, selector.keeps_teacher_probs)
    make_validation(selector, calibration)
    stats = selector.select(0, teacher_statistics(selector.config), None, None)
    trainable_c = np.zeros(3)
    for shard in range(7):
        row_n, signals = selector.signals(shard, None)
        held_n = selector.held(shard, row_n)
        trainable_c += np.bincount(signals.label_n[~held_n], minlength=3)
    for found, trainable in zip(stats["classes"].values(), trainable_c, strict=True):
        assert trainable < 0.9 * found["rows"]
        assert 0.6 * trainable <= found["selected"] < 0.8 * trainable

    labels = Folder(RunLayout(config.run_dir).labels("corpus"))
    logprobs_nc = np.concatenate([matrix(labels.read_shard(s)["logprobs"]) for s in range(7)])
    no_features_nd, position_n = np.zeros((420, 1), np.float32), np.arange(420)
    problem = Problem(
        no_features_nd, calibration.apply(logprobs_nc).astype(np.float32), position_n,
        position_n // 60, position_n % 5, None, no_features_nd, position_n,
    )  # fmt: skip
    cheap = CheapRun(config, problem)
    assert cheap.epoch(0)[0]["classes"] == stats["classes"]


def write_uncertainty(config: RunConfig, epoch: int, shard: int, values: np.ndarray) -> None:
    columns = {"row": np.arange(len(values), dtype=np.int32), "uncertainty": values}
    schema = UNCERTAINTY_SCHEMA
    if policy_of(config).uses_student_probs:
        probs = np.stack([values, (1 - values) / 3, 2 * (1 - values) / 3], axis=1)
        columns["probs"] = fixed_lists(probs, np.float16)
        schema = with_probs(schema, pa.float16(), 3)
    table = pa.table(columns, schema=schema)
    Folder(RunLayout(config.run_dir).uncertainty(epoch)).write_shard(shard, table)


def test_gold_never_reaches_training(
    tmp_path: Path, finished: Finished, corpus_files: tuple[str, str]
) -> None:
    table = pq.read_table(corpus_files[0])
    order = np.random.default_rng(5).permutation(table.num_rows)
    shuffled = tmp_path / "shuffled.parquet"
    pq.write_table(table.set_column(1, "label", table["label"].take(order)), shuffled)
    config, make = finished
    corpus = {"path": str(shuffled), "label_column": "label"}
    other = make(**{**SETTINGS, "corpus": corpus}, run_dir=str(tmp_path / "other"))
    distilled(other, SilentTracker())
    export(other)
    gold = [
        Folder(RunLayout(c.run_dir).rows("corpus")).read_shard(0)["gold"].to_pylist()
        for c in (config, other)
    ]
    assert gold[0] != gold[1]
    ours, theirs = student_weights(config), student_weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert np.array_equal(value, theirs[name]), name


def test_a_run_that_lost_its_last_epoch_goes_on_from_the_checkpoint(
    tmp_path: Path, finished: Finished
) -> None:
    config = copy_of(finished, tmp_path)
    layout = RunLayout(config.run_dir)
    first = [read_stats(config, epoch) for epoch in (0, 1)]
    kept = {p: p.stat().st_mtime_ns for p in Path(layout.epochs).glob("0[01]/*/part-*")}
    lose_last_epoch(config)
    Path(layout.uncertainty(2), "part-00003.parquet").unlink()
    scored = {p: p.stat().st_mtime_ns for p in Path(layout.uncertainty(2)).glob("part-*")}
    # As a kill in the middle of Ray Train's own record leaves it.
    Path(layout.checkpoints, "checkpoint_manager_snapshot.json").write_text("")
    distill(config, calibrate(config), live_tracker())
    assert [read_stats(config, epoch) for epoch in (0, 1)] == first
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert {p: p.stat().st_mtime_ns for p in scored} == scored
    assert Folder(layout.selection(2)).shards() == set(range(7))


def lose_last_epoch(config: RunConfig) -> None:
    """The run as after a kill between the third epoch's scoring and its selection."""
    layout = RunLayout(config.run_dir)
    manifest = Folder(layout.epochs).read_json("manifest.json")
    Folder(layout.epochs).write_json("manifest.json", {**manifest, "complete": False})
    shutil.rmtree(layout.selection(2))
    Path(layout.epoch(2), "stats.json").unlink()
    checkpoints = Path(layout.checkpoints)
    (checkpoints / "epoch-0002").rename(checkpoints / "epoch-0001")
    state = json.loads((checkpoints / "epoch-0001/state.json").read_text())
    (checkpoints / "epoch-0001/state.json").write_text(json.dumps({**state, "epoch": 1}))


@pytest.mark.usefixtures("in_process")
def test_epochs_that_were_deleted_are_made_anew_and_one_worker_learns_like_two(
    tmp_path: Path, finished: Finished
) -> None:
    config = copy_of(finished, tmp_path, student={"workers": 1, "epochs": 3})
    shutil.rmtree(RunLayout(config.run_dir).epochs)  # but not the checkpoints
    distill(config, calibrate(config), live_tracker())
    ours, theirs = ([read_stats(c, e) for e in range(3)] for c in (config, finished[0]))
    # Before any training both know the same, so the first epoch's rows are the same.
    assert selected_rows(config, 0) == selected_rows(finished[0], 0)
    losses = [[stats["training_loss"] for stats in each] for each in (ours, theirs)]
    assert losses[0][0] > losses[0][1]
    assert losses[0] == pytest.approx(losses[1], rel=0.15)


def test_a_checkpoint_that_cannot_be_stored_is_told_and_the_same_command_goes_on(
    make_config: MakeConfig, tracker: SilentTracker
) -> None:
    config = labelled(make_config(test=None, student={"max_failures": 0, "epochs": 1}), tracker)
    layout = RunLayout(config.run_dir)
    Path(layout.epoch(0)).mkdir(parents=True)
    blocked = Path(layout.checkpoints, "epoch-0000")
    blocked.parent.mkdir()
    blocked.write_text("")  # in place of a folder
    with pytest.raises(StorageError, match=r"Cannot write .*checkpoints/epoch-0000/model.safe"):
        distill(config, calibrate(config), live_tracker())
    blocked.unlink()
    assert distill(config, calibrate(config), live_tracker()).complete


def test_settings_that_change_the_student_are_refused(
    finished: Finished, tracker: SilentTracker
) -> None:
    config, make = finished
    selection = {**SETTINGS["selection"], "policy": "all"}
    other = make(**{**SETTINGS, "selection": selection})
    with pytest.raises(FingerprintError, match='selection.policy: was "llkd", now "all"'):
        distill(other, calibrate(other), tracker)
    more = make(**{**SETTINGS, "student": {"epochs": 3, "workers": 1}})
    assert distill(more, calibrate(config), tracker).complete


def test_rows_held_out_are_never_trained_on_and_choose_the_student(
    tmp_path: Path,
    make_config: MakeConfig,
    tracker: SilentTracker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training stops after `patience` epochs without improvement."""
    # The linear probe is better than so short a training: tests/distill/test_probe.py.
    monkeypatch.setattr("llkd.distill.stage.keeps_probe", lambda *arguments: False)
    config = make_config(
        test=None, corpus={"label_column": "label"},
        student={
            "epochs": 9, "validation_fraction": 0.4, "patience": 1, "workers": [1, 2],
            "batch_size": 15, "learning_rate": 2e-2,
        },
    )  # fmt: skip
    results = distilled(config, tracker)
    layout, epochs = RunLayout(config.run_dir), results["epochs"]
    parts = Folder(layout.validation)
    held = pa.concat_tables(parts.read_shard(shard) for shard in sorted(parts.shards()))
    assert 420 / 2 * 0.4 * 0.5 < held.num_rows < 420 / 2 * 0.4 * 1.5
    held_texts = set(held["text"].to_pylist())
    scores = []
    for epoch in range(epochs):
        assert not held_texts & selected_rows(config, epoch).keys()
        stats = read_stats(config, epoch)
        assert stats["validation"]["rows"] == held.num_rows
        assert stats["stopped"] == (epoch == epochs - 1 and epochs < 9)
        scores.append(stats["validation"]["macro_f1"])
    best = [int(np.argmax(scores[: epoch + 1])) for epoch in range(epochs)]
    assert best[: epochs - 1] == list(range(epochs - 1))  # else patience was at its end before
    assert results["epoch"] == int(np.argmax(scores))
    assert epochs == 9 or epochs == results["epoch"] + 2
    assert [p.name for p in Path(layout.checkpoints).glob("epoch-*")] == [results["checkpoint"]]
    by_epoch = measure_held_out(config, epochs)
    assert [entry["macro_f1"] for entry in by_epoch] == scores
    assert all(0 < entry["gold_accuracy"] <= 1 for entry in by_epoch)
    export(config)
    chosen = load_file(Path(layout.checkpoints, results["checkpoint"]) / "model.safetensors")
    exported = student_weights(config)
    assert all(np.array_equal(exported[name], chosen[name]) for name in exported)
