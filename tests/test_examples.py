"""The examples of docs/extending.md, run through the pipeline."""

import numpy as np
import pytest

from docs.examples.curriculum import Curriculum
from docs.examples.rules_engine import RulesEngine
from llkd.core.policies import PolicySettings, Rule, Signals, select_rows
from llkd.core.statistics import class_statistics
from llkd.core.thresholds import Thresholds
from llkd.distill.policy import policy_of
from llkd.distill.pseudo_labels import make_pseudo_labels, teacher_statistics
from llkd.distill.selection import Selector
from llkd.distill.stage import manifest_of
from llkd.errors import ConfigError
from llkd.ingest.stage import ingest
from llkd.lab.compare.compare import variant
from llkd.preflight import require_inputs
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout, shard_starts
from llkd.teacher.calibrate import calibrate
from llkd.teacher.stage import label
from tests.conftest import ROOT, MakeConfig, SilentTracker
from tests.fakes import TOPICS

ENGINE, POLICY = "docs.examples.rules_engine:RulesEngine", "docs.examples.curriculum:Curriculum"


@pytest.mark.parametrize("name", ["rules_engine", "curriculum"])
def test_the_page_holds_the_example_as_it_is(name: str) -> None:
    code = (ROOT / f"docs/examples/{name}.py").read_text()
    assert f"```python\n{code}```" in (ROOT / "docs/extending.md").read_text()
    assert len(code.splitlines()) <= 40


def test_how_it_works_names_files_that_there_are() -> None:
    for page in ("how-it-works.md", "extending.md"):
        text = (ROOT / "docs" / page).read_text()
        named = [
            word
            for word in text.replace("(", "`").split("`")
            if word.startswith(("llkd/", "jobs/"))
        ]
        assert named
        assert [word for word in named if not (ROOT / word.split()[0].rstrip("`);")).exists()] == []


def test_rules_speak_for_labels(make_config: MakeConfig) -> None:
    config = make_config(teacher={"engine_args": {"words": TOPICS, "trust": 1.0}})
    batch = RulesEngine(config.teacher, config.task).label(
        ["a goal of the team", "profit", "nothing"], [None] * 3, lambda done: None
    )
    expected = np.exp([2, 0, 0]) / np.exp([2, 0, 0]).sum()
    assert np.exp(batch.logprobs_nc[0]) == pytest.approx(expected, abs=1e-6)
    assert batch.logprobs_nc[1].argmax() == 2
    assert batch.refused == {2: "no_rule"}
    with pytest.raises(ConfigError, match="Give words for each"):
        RulesEngine(make_config(teacher={"engine_args": {"words": {}}}).teacher, config.task)


def test_a_curriculum_takes_more_of_each_class_every_epoch() -> None:
    label_n = np.array([0] * 8 + [1] * 4)
    confidence_n = np.linspace(0.4, 0.95, 12)
    signals = Signals(label_n, confidence_n, None, np.arange(12))
    statistics = class_statistics(label_n, confidence_n, None, 2)
    policy = Curriculum(PolicySettings(rule=Rule(fraction=0.25)))
    for epoch, wanted in enumerate(([6, 7, 11], [4, 5, 6, 7, 10, 11])):
        _, (choice,) = select_rows(policy, epoch, [signals], statistics, None)
        assert np.flatnonzero(choice.weight_n).tolist() == wanted
    _, (choice,) = select_rows(policy, 9, [signals], statistics, None)
    assert choice.weight_n.tolist() == [1.0] * 12


def test_a_policy_that_is_not_there_is_told_before_anything_runs(make_config: MakeConfig) -> None:
    for name, said in (
        ("nosuch.module:Mine", r"selection.policy: cannot import nosuch.module:Mine: No module"),
        (
            "docs.examples.curriculum:Mine",
            r"selection.policy: cannot import .* no attribute 'Mine'",
        ),
        ("docs.examples.rules_engine:RulesEngine", r"is not a policy. Name a class that inherits"),
    ):
        with pytest.raises(ConfigError, match=said):
            require_inputs("run", make_config(selection={"policy": name}))
    for name in ("best", "a.b:", ":Mine", "a b:Mine"):
        with pytest.raises(ConfigError, match=r"selection.policy: must be one of llkd, .*:Class"):
            make_config(selection={"policy": name})


def test_a_policy_of_ones_own_is_compared(make_config: MakeConfig) -> None:
    config = make_config()
    own = variant(config, f"{POLICY}:selection.fraction=0.5;student.epochs=3")
    assert (own.selection.policy, own.selection.fraction, own.student.epochs) == (POLICY, 0.5, 3)
    assert isinstance(policy_of(variant(config, POLICY)), Curriculum)


@pytest.mark.usefixtures("local_ray", "in_process")
def test_both_over_shards(make_config: MakeConfig) -> None:
    """The pipeline with both examples, except the training."""
    words = {name: known[:4] for name, known in TOPICS.items()}  # a fifth of them says nothing
    config = make_config(
        test=None, teacher={"engine": ENGINE, "model": "rules", "engine_args": {"words": words}},
        selection={"policy": POLICY, "fraction": 0.4},
    )  # fmt: skip
    ingest(config, "corpus", SilentTracker())
    labelled = label(config, ["corpus"], SilentTracker())["corpus"]
    assert 0 < labelled.results["rejected"] == 420 - sum(labelled.results["rows"]) < 42
    assert labelled.settings["teacher.engine"] == ENGINE
    assert manifest_of(config, labelled).settings["selection.policy"] == POLICY
    selector = Selector(config, shard_starts([60] * 7), policy_of(config))
    make_pseudo_labels(config, selector.shards, calibrate(config), selector.keeps_teacher_probs)
    shares, previous = [], None
    for epoch in range(2):
        stats = selector.select(epoch, teacher_statistics(selector.config), None, previous)
        previous = Thresholds.from_json(stats["thresholds"])
        folder = Folder(RunLayout(config.run_dir).selection(epoch))
        rows = sum(len(folder.read_shard(shard)) for shard in range(7))
        assert rows == stats["selected"]
        shares.append(stats["fraction"])
    assert 0.4 <= shares[0] < 0.8 <= shares[1]  # those with two words, then some with one
