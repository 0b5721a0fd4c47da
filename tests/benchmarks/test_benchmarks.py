"""What the benchmarks make of their measurements."""

import subprocess
import sys

import numpy as np
import pytest

from llkd.benchmarks import contest, labels, teacher
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
