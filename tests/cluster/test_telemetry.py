"""Metrics of a run as Prometheus reads them from Ray, and its lines as log collectors read them."""

import io
import json
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from llkd.cluster.display import ProgressDisplay
from llkd.cluster.telemetry import (
    MAX_TAG_VALUES,
    OTHER,
    SHARD_LOG,
    ShardDone,
    Work,
    announce,
)
from llkd.config.run import RunConfig
from llkd.distill.epoch_stats import read_stats
from llkd.distill.stage import distill
from llkd.ingest.stage import ingest
from llkd.results.predict import pass_over_test, predict
from llkd.results.save_student import export
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout
from llkd.teacher.calibrate import calibrate
from llkd.teacher.stage import label
from tests.conftest import config_maker
from tests.fakes import make_texts
from tests.in_process import in_process

RUN = "watched"
Series = dict[tuple[str, ...], float]
Samples = dict[str, list[tuple[dict[str, str], float]]]
"""(tags, value) by the exported name."""


@dataclass
class Watched:
    """A run and its telemetry."""

    config: RunConfig
    lines: list[dict[str, Any]]
    samples: Samples
    seconds: float
    """Duration of the run."""

    def series(self, name: str, *tags: str, run: str = RUN) -> Series:
        """The values of a run by these tags; each is there once."""
        found = [(t, value) for t, value in self.samples.get(name, []) if t["run"] == run]
        by_tags = {tuple(t[tag] for tag in tags): value for t, value in found}
        assert len(by_tags) == len(found)
        return by_tags


@pytest.fixture(scope="module")
def watched(
    local_ray: None, tmp_path_factory: pytest.TempPathFactory, tiny_student: str,
    corpus_files: tuple[str, str],
) -> Watched:  # fmt: skip
    """A run from ingest to predictions, whose metrics are then read from Ray's agent."""
    folder = tmp_path_factory.mktemp("telemetry")
    texts, _ = make_texts(150, seed=5)
    texts[7], texts[11], texts[90] = "", " ", "NUL \x00"
    pq.write_table(pa.table({"text": texts}), folder / "corpus.parquet")
    config = config_maker(folder, tiny_student, corpus_files)(
        run_dir=str(folder / RUN), max_reject_fraction=0.5,
        corpus={"path": str(folder / "corpus.parquet"), "rows_per_shard": 40},
        teacher={"engine_args": {"refuse": "goal"}}, student={"epochs": 2},
    )  # fmt: skip
    log = folder / "shards.jsonl"
    token, started = SHARD_LOG.set(str(log)), time.monotonic()
    with ProgressDisplay(Console(file=io.StringIO())) as display:
        SHARD_LOG.reset(token)
        tracker = display.tracker
        for dataset in ("corpus", "test"):
            ingest(config, dataset, tracker)
        label(config, ["corpus", "test"], tracker)
        with in_process():
            distill(config, calibrate(config), tracker)
        export(config)
        predict(config, pass_over_test(config), tracker)
        tell_what_must_stay_bounded(tracker)
        samples = scraped(told_last)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return Watched(config, lines, samples, time.monotonic() - started)


def tell_what_must_stay_bounded(tracker: Any) -> None:
    """Report extreme cases that would take too long in a real run."""
    twice = ShardDone(Work(RUN, "label", "corpus"), 0, rows=1000, seconds=1.0)
    tracker.shard.remote(twice)
    for labels in (MAX_TAG_VALUES, MAX_TAG_VALUES + 1):
        tracker.epoch.remote(Work(f"{labels} labels", "train", "corpus", 0), stats_of(labels))
    of = Work("many reasons", "label", "corpus")
    tracker.missing.remote(of, [0])
    reasons = {f"reason {i}": 1 for i in range(MAX_TAG_VALUES + 8)}
    tracker.shard.remote(ShardDone(of, 0, 0, 1.0, reasons))


def told_last(samples: Samples) -> bool:
    return any(
        tags["run"] == "many reasons" for tags, _ in samples.get("ray_llkd_shards_total", [])
    )


def stats_of(labels: int) -> dict[str, Any]:
    """An epoch's stats.json; the first label has no threshold for the confidence."""
    return {
        "selected": 8, "dropped": 1, "fraction": 0.25, "training_loss": 0.5,
        "seconds": {"score": 1.0, "select": 0.5, "train": 2.0},
        "classes": {f"label {i}": {"fraction": 0.5} for i in range(labels)},
        "thresholds": {
            "confidence_c": [None, *([0.75] * (labels - 1))], "uncertainty_c": [None] * labels,
        },
    }  # fmt: skip


def scraped(enough: Callable[[Samples], bool]) -> Samples:
    """Read our metrics from Ray's agent as Prometheus does, until `enough` holds."""
    samples: Samples = {}
    # The agent receives the metrics of a process one by one: they are complete when they stop changing.
    while not enough(samples) or samples != ours():
        samples = ours()
        time.sleep(1)
    return samples


def ours() -> Samples:
    return {k: v for k, v in read_agent().items() if k.startswith("ray_llkd_")}


def read_agent() -> Samples:
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples: Samples = {}
    for sample in (sample for family in families for sample in family.samples):
        samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples


@pytest.mark.usefixtures("local_ray")
def test_no_shard_is_begun_before_the_tracker_knows_that_it_is_to_be_done() -> None:
    import ray

    @ray.remote(num_cpus=0, concurrency_groups={"others": 1})
    class Slow:
        def __init__(self) -> None:
            self.known: list[int] = []

        def missing(self, of: Work, shards: list[int]) -> None:
            time.sleep(1)
            self.known = shards

        @ray.method(concurrency_group="others")
        def asked(self) -> list[int]:
            return self.known

    tracker = Slow.remote()  # type: ignore[attr-defined]
    assert ray.get(tracker.asked.remote()) == []
    announce(tracker, Work(RUN, "ingest", "corpus"), [3, 4])
    assert ray.get(tracker.asked.remote()) == [3, 4]
    ray.kill(tracker)


def test_rows_are_those_of_the_manifests(watched: Watched) -> None:
    layout = RunLayout(watched.config.run_dir)
    labels = Folder(layout.labels("corpus"))
    labelled = sum(labels.shard_rows(shard) for shard in labels.shards())
    assert 75 < labelled < 147
    stats = [read_stats(watched.config, epoch) for epoch in (0, 1)]
    assert watched.series("ray_llkd_rows_total", "stage", "dataset") == {
        ("ingest", "corpus"): 147, ("ingest", "test"): 120,
        ("label", "corpus"): labelled, ("label", "test"): watched_rows(layout, "test_labels"),
        ("score", "corpus"): 2 * labelled,
        ("train", "corpus"): sum(entry["selected"] - entry["dropped"] for entry in stats),
        ("predict", "test"): 120,
    }  # fmt: skip


def watched_rows(layout: RunLayout, name: str) -> int:
    folder = Folder(f"{layout.root}/{name}")
    return sum(folder.shard_rows(shard) for shard in folder.shards())


def test_rejects_are_counted_by_stage_and_reason(watched: Watched) -> None:
    layout = RunLayout(watched.config.run_dir)
    refused = {
        dataset: watched_rows(layout, f"rejects/label-{dataset}") for dataset in ("corpus", "test")
    }
    assert watched.series("ray_llkd_rejects_total", "stage", "dataset", "reason") == {
        ("ingest", "corpus", "empty"): 2, ("ingest", "corpus", "nul_byte"): 1,
        ("label", "corpus", "refused"): refused["corpus"],
        ("label", "test", "refused"): refused["test"],
    }  # fmt: skip


def test_tokens_are_those_that_the_teacher_was_asked(watched: Watched) -> None:
    layout = RunLayout(watched.config.run_dir)

    def words(dataset: str) -> int:
        rows = Folder(layout.rows(dataset))
        return sum(
            len(text.split())
            for shard in rows.shards()
            for text in rows.read_shard(shard, ["text"])["text"].to_pylist()
        )

    assert watched.series("ray_llkd_prompt_tokens_total", "stage", "dataset") == {
        ("label", dataset): words(dataset) for dataset in ("corpus", "test")
    }


def test_no_shard_waits_in_the_end(watched: Watched) -> None:
    shards = {
        ("ingest", "corpus"): 4, ("ingest", "test"): 1, ("label", "corpus"): 4,
        ("label", "test"): 1, ("score", "corpus"): 8, ("predict", "test"): 1,
    }  # fmt: skip
    assert watched.series("ray_llkd_shards_total", "stage", "dataset") == shards
    waiting = watched.series("ray_llkd_shards_waiting", "stage", "dataset")
    assert waiting == dict.fromkeys(shards, 0)
    seconds = watched.series("ray_llkd_shard_seconds_total", "stage", "dataset")
    assert seconds.keys() == shards.keys()
    assert all(0 < value < watched.seconds * shards[key] for key, value in seconds.items())


def test_epochs_are_those_of_the_stats(watched: Watched) -> None:
    stats = {str(epoch): read_stats(watched.config, epoch) for epoch in (0, 1)}
    assert watched.series("ray_llkd_selected_ratio", "epoch") == pytest.approx(
        {(epoch,): entry["fraction"] for epoch, entry in stats.items()}
    )
    assert watched.series("ray_llkd_training_loss", "epoch") == pytest.approx(
        {(epoch,): entry["training_loss"] for epoch, entry in stats.items()}
    )
    assert watched.series("ray_llkd_label_selected_ratio", "epoch", "label") == pytest.approx(
        {
            (epoch, name): found["fraction"]
            for epoch, entry in stats.items()
            for name, found in entry["classes"].items()
        }
    )
    names = list(stats["1"]["classes"])
    thresholds = {
        (epoch, signal, name): threshold
        for epoch, entry in stats.items()
        for signal in ("confidence", "uncertainty")
        for name, threshold in zip(names, entry["thresholds"][f"{signal}_c"], strict=True)
        if threshold is not None
    }
    assert {key[:2] for key in thresholds} >= {("0", "confidence"), ("1", "uncertainty")}
    found = watched.series("ray_llkd_label_threshold", "epoch", "signal", "label")
    assert found == pytest.approx(thresholds)
    means = watched.series("ray_llkd_threshold", "epoch", "signal")
    for key in {key[:2] for key in thresholds}:
        values = [
            value for (epoch, signal, _), value in thresholds.items() if (epoch, signal) == key
        ]
        assert means[key] == pytest.approx(sum(values) / len(values))


def test_the_number_of_series_is_bounded(watched: Watched) -> None:
    few, many = f"{MAX_TAG_VALUES} labels", f"{MAX_TAG_VALUES + 1} labels"
    names = ("ray_llkd_label_selected_ratio", "ray_llkd_label_threshold")
    assert [len(watched.series(name, "label", run=few)) for name in names] == [32, 31]
    assert [len(watched.series(name, "label", run=many)) for name in names] == [0, 0]
    assert watched.series("ray_llkd_threshold", "signal", run=many) == {("confidence",): 0.75}
    reasons = watched.series("ray_llkd_rejects_total", "reason", run="many reasons")
    known = MAX_TAG_VALUES - 3  # three are those of the run
    assert len(reasons) == known + 1
    assert reasons[OTHER,] == MAX_TAG_VALUES + 8 - known


def test_each_shard_has_a_line(watched: Watched) -> None:
    lines = [line for line in watched.lines if line["run"] == RUN]
    told_twice = lines.pop(next(i for i, line in enumerate(lines) if line["rows"] == 1000))
    assert told_twice["shard"] == 0
    assert Counter((line["stage"], line["dataset"], line.get("epoch")) for line in lines) == {
        ("ingest", "corpus", None): 4, ("ingest", "test", None): 1,
        ("label", "corpus", None): 4, ("label", "test", None): 1,
        ("score", "corpus", 0): 4, ("score", "corpus", 1): 4,
        ("train", "corpus", 0): 1, ("train", "corpus", 1): 1, ("predict", "test", None): 1,
    }  # fmt: skip
    of_label = [line for line in lines if (line["stage"], line["dataset"]) == ("label", "corpus")]
    assert sorted(line["shard"] for line in of_label) == [0, 1, 2, 3]
    for name, metric in (("rows", "rows"), ("tokens", "prompt_tokens")):
        counted = watched.series(f"ray_llkd_{metric}_total", "stage", "dataset")
        assert sum(line[name] for line in of_label) == counted["label", "corpus"]
    now = datetime.now(UTC)
    for line in lines:
        assert timedelta(0) <= now - datetime.fromisoformat(line["time"]) < timedelta(hours=1)
        assert line["seconds"] >= 0
    import ray

    assert {line["node"] for line in of_label} == {ray.get_runtime_context().get_node_id()}
    assert all(line["host"] and line["pid"] for line in of_label)
