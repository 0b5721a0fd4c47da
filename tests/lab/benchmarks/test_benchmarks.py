"""The benchmarks: their contestants, their figures and their command line."""

import importlib
import subprocess
import sys
from collections import Counter
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llkd.student.data
from llkd.config.run import RunConfig
from llkd.core.uncertainty import entropy
from llkd.errors import IncompleteError
from llkd.lab.benchmarks import contest, labels, scoring, student, teacher, training
from llkd.store.folder import Folder
from llkd.store.schema import ROW, TEXT, UNCERTAINTY, RunLayout
from tests.conftest import ROOT, MakeConfig


def test_ratios_are_medians_of_rounds() -> None:
    rates = {"ours": [10.0, 30.0, 20.0], "vllm": [5.0, 10.0, 40.0]}
    assert contest.ratio(rates, "vllm") == 2.0  # of 2, 3 and 0.5


def test_the_table_of_speeds() -> None:
    rates = {"ours": [10.0, 30.0, 20.0], "vllm": [5.0, 10.0, 40.0]}
    result = {
        "rows_per_second": {"model": rates, "tiny": {"ours": [7.0, 7.0, 7.0]}},
        "ratios": {"vs_vllm": 2.0}, "rounds": 3,
    }  # fmt: skip
    lines = teacher.table(result).splitlines()
    assert lines[1].split() == ["ours", "20.0", "(10.0-30.0)", "7.0", "(7.0-7.0)"]
    assert lines[2].split() == ["vllm", "10.0", "(5.0-40.0)"]
    assert "vs_vllm 2.00" in lines[3]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contestants run in this process, by the config as another process would read it."""

    def run(module: str, name: str, config: RunConfig, data: Path, _: Any) -> float:
        config = RunConfig.model_validate(config.model_dump(mode="json"))
        contestant: contest.Contestant = importlib.import_module(module).CONTESTANTS[name]
        return contestant(config, data)

    monkeypatch.setattr(contest, "run_contestant", run)


def test_a_contestant_in_a_process_of_its_own(make_config: MakeConfig, tmp_path: Path) -> None:
    config = student.prepare(make_config(), tmp_path, 20)
    assert contest.run_contestant("llkd.lab.benchmarks.scoring", "ours", config, tmp_path, {}) > 0
    with pytest.raises(IncompleteError, match="(?s)nobody failed:.*KeyError"):
        contest.run_contestant("llkd.lab.benchmarks.scoring", "nobody", config, tmp_path, {})


def test_few_texts_are_cut_into_pieces_no_two_the_same(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contest, "PIECE", 20)
    config = student.prepare(make_config(), tmp_path, 500)  # of 420
    texts = contest.read_texts(tmp_path / student.TEXTS)
    assert len(set(texts)) == len(texts) == 500
    assert max(map(len, texts)) == 20
    corpus = Folder(RunLayout(config.run_dir).rows("corpus"))
    shards = [corpus.read_shard(shard) for shard in sorted(corpus.shards())]
    assert [shard.num_rows for shard in shards] == [60] * 8 + [20]
    assert [text for shard in shards for text in shard[TEXT].to_pylist()] == texts


def test_the_uncertainty_pass_beside_the_pipeline_and_a_bare_loop(
    make_config: MakeConfig, in_process: None
) -> None:
    said: list[str] = []
    config = make_config(student={"precision": "bfloat16"})
    result = scoring.benchmark_scoring(config, 90, 2, said.append)
    assert list(result["ratios"]) == ["vs_pipeline", "vs_pipeline_1", "vs_bare_loop"]
    rates = result["rows_per_second"]
    assert list(rates)[:3] == ["ours", "pipeline", "pipeline_1"]
    for name in list(rates)[3:]:
        way = name.rsplit("_", 1)[0]
        tried = {key: rate for key, (rate,) in result["tried"].items() if key.startswith(way)}
        assert len(tried) == len(scoring.BATCH_SIZES)
        assert name == max(tried, key=lambda key: tried[key])
    assert all(len(each) == 2 and min(each) > 0 for each in rates.values())
    assert (result["rows"], result["precision"]) == (90, "bfloat16")
    assert len(said) == 2 * len(scoring.BATCH_SIZES) + 2 * 5
    assert "vs_bare_loop" in scoring.table(result)


def test_all_score_the_same_rows_alike(make_config: MakeConfig, tmp_path: Path) -> None:
    config = student.prepare(make_config(), tmp_path, 90)  # in float32
    texts = contest.read_texts(tmp_path / student.TEXTS)
    scoring.run_ours(config, tmp_path)
    written = Folder(RunLayout(str(tmp_path)).uncertainty(0))
    shards = [written.read_shard(shard) for shard in sorted(written.shards())]
    assert [shard[ROW].to_pylist() for shard in shards] == [list(range(60)), list(range(30))]
    ours_n = np.concatenate([shard[UNCERTAINTY].to_numpy() for shard in shards])
    bare_nc = scoring.bare_loop(config, "float32", 16)(texts).numpy()
    found = scoring.pipeline_scores(config)(texts, batch_size=32)
    pipeline_nc = np.array([[score["score"] for score in row] for row in found])
    np.testing.assert_allclose(entropy(bare_nc), ours_n, atol=1e-5)
    np.testing.assert_allclose(entropy(pipeline_nc), ours_n, atol=1e-5)


def test_training_beside_transformers_on_the_same_rows(
    make_config: MakeConfig, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertForSequenceClassification

    forward = BertForSequenceClassification.forward
    seen: list[Counter[tuple[int, ...]]] = []
    steps: list[int] = []

    @wraps(forward)  # the Trainer keeps the columns that its signature has
    def recording(model: Any, *arguments: Any, **inputs: Any) -> Any:
        if not steps or not torch.is_grad_enabled() or len(inputs["input_ids"]) == 1:
            return forward(model, *arguments, **inputs)  # a look at the model as it is loaded
        steps[-1] += 1
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            seen[-1][tuple(ids[mask.bool()].tolist())] += 1
        return forward(model, *arguments, **inputs)

    def training_anew(original: Any) -> Any:
        def train(*arguments: Any) -> float:
            seen.append(Counter())
            steps.append(0)
            rate: float = original(*arguments)
            return rate

        return train

    monkeypatch.setattr(BertForSequenceClassification, "forward", recording)
    monkeypatch.setattr(llkd.student.data, "SMALLEST_PIECE", 16)  # a forward pass each step
    for name in ("_train_ours", "_train_with_transformers"):
        monkeypatch.setattr(training, name, training_anew(getattr(training, name)))
    result = training.benchmark_training(make_config(), 90, 1, lambda line: None)
    assert list(result["ratios"]) == ["vs_trainer", "vs_trainer_grouped"]
    assert all(rate > 0 for (rate,) in result["rows_per_second"].values())
    assert steps == [training.WARM_UP_STEPS, 6] * 3  # 90 rows in batches of 16
    assert [sum(counts.values()) for counts in seen] == [32, 90] * 3
    assert seen[1] == seen[3] == seen[5]
    assert "vs_trainer" in training.table(result)


def test_all_calibrations_come_of_one_labelling() -> None:
    rng = np.random.default_rng(0)
    gold = rng.integers(3, size=600)
    logprobs = rng.normal(size=(600, 3)) + 2 * np.eye(3)[gold] + np.array([3.0, 0.0, 0.0])
    found = {
        name: (probs.argmax(axis=1) == truth).mean()
        for name, probs, truth in labels.calibrated(logprobs, logprobs[:3], gold)
    }
    assert list(found) == [
        "none", "contextual", "batch, one step", "batch", "temperature", "known prior",
    ]  # fmt: skip
    assert found["none"] < 0.6 < 0.8 < found["batch"]
    assert found["temperature"] == found["batch"]


def test_rows_with_gold_are_drawn_once_each_and_never_an_example(make_config: MakeConfig) -> None:
    config = make_config(corpus={"label_column": "label"})
    every = labels.read_labelled(config, 10_000, set())
    assert len(every.texts) == len(set(every.texts)) == 420
    some = labels.read_labelled(config, 50, {every.texts[0]})
    assert len(some.texts) == 50
    assert every.texts[0] not in some.texts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["teacher", "--config", "nothing.yaml"], "Cannot read the config nothing.yaml"),
        (["labels", "jobs/configs/bbc.yaml"], "corpus.label_column must name the gold"),
        (["selection", "--sizes", "0"], "'0' are not numbers of rows or shards"),
        (["speed"], "invalid choice"),
    ],
)
def test_wrong_input_is_told_in_a_line(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "jobs/benchmark.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
