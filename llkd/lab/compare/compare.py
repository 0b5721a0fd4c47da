"""Policies by seeds, on the same rows and labels.

By fine-tuning each run is a run directory of its own, `<run_dir>/compare/<policy>-<seed>`, that
reads the rows and labels of `<run_dir>` (see RunLayout) and resumes like any other. On a frozen
student a run takes seconds and leaves its figures, in `<run_dir>/compare/cheap`.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console

from llkd.config.load import changed
from llkd.config.run import RunConfig
from llkd.core.policies import PolicyName, Signals
from llkd.distill.selection import policy_of
from llkd.errors import ConfigError
from llkd.lab.compare.results import RunResult, Summary, reliability, summarise
from llkd.store.folder import Folder
from llkd.store.manifest import FILES, Manifest, open_stage, read_manifest, require_complete
from llkd.store.schema import GOLD, METRICS, RunLayout
from llkd.teacher.calibrate import calibrate, calibration_settings


def require_comparable(config: RunConfig, policies: Sequence[str]) -> None:
    """See that runs can be compared, before any is made.

    Raises:
        ConfigError: there is no test set, or no such policy or setting.
    """
    if config.test is None:
        raise ConfigError(
            "Policies are compared on a test set",
            "Name its files in test.path.",
        )
    for what in policies:
        policy_of(variant(config, what))


def variant(config: RunConfig, what: str) -> RunConfig:
    """The config of a policy, with settings of its own if it has any.

    Args:
        config: what all have in common.
        what: a value of `selection.policy`, or `POLICY:dotted.key=value;dotted.key=value`; POLICY
            may be `package.module:Class`.

    Raises:
        ConfigError: there is no such policy or setting.
    """
    policy, _, settings = what.partition(":")
    if policy not in get_args(PolicyName) and settings:
        name, _, settings = settings.partition(":")
        policy = f"{policy}:{name}"
    overrides = [setting for setting in settings.split(";") if setting]
    return changed(config, [f"selection.policy={policy}", *overrides])


def variants(
    config: RunConfig, policies: Sequence[str], seeds: int
) -> Iterator[tuple[str, RunConfig]]:
    """(what, config) of each run, policy by policy; see `variant`.

    Args:
        config: what they have in common.
        policies: what to compare.
        seeds: how many, from the config's own on.
    """
    layout = RunLayout(config.run_dir)
    for what in policies:
        found = variant(config, what)
        name = re.sub(r"[^\w.=-]+", "-", what)
        for seed in range(config.seed, config.seed + seeds):
            run_dir = layout.comparison(f"{name}-{seed}")
            yield what, found.model_copy(update={"run_dir": run_dir, "seed": seed})


def is_labelled(config: RunConfig) -> bool:
    """Whether rows and labels are there, those of the test set too."""
    layout = RunLayout(config.run_dir)
    folders = [of(dataset) for of in (layout.rows, layout.labels) for dataset in ("corpus", "test")]
    found = [read_manifest(Folder(folder)) for folder in folders]
    return all(manifest is not None and manifest.complete for manifest in found)


BORROWED = "borrowed.json"
"""In the run directory of a run that began with another's scores: what these took."""


@dataclass(frozen=True)
class Comparison:
    """What was compared on one data set."""

    results: list[RunResult]
    summaries: list[Summary]
    teacher_macro_f1: float
    """On the test set."""


def comparison(
    config: RunConfig, policies: Sequence[str], seeds: int, cheap: bool, console: Console
) -> Comparison:
    """Make all runs on labels that are there; see `run_cheap` and `run_fine_tuned`."""
    from llkd.results.evaluate import measure_teacher

    run = run_cheap if cheap else run_fine_tuned
    results = run(config, policies, seeds, console)
    teacher = measure_teacher(config, "test", calibrate(config))
    return Comparison(results, summarise(results), teacher.macro_f1)


def run_cheap(
    config: RunConfig, policies: Sequence[str], seeds: int, console: Console
) -> list[RunResult]:
    """All runs on the frozen student. Rows and labels must be there."""
    import torch

    from llkd.lab.compare.linear_probe import CheapRun, read_problem

    problem, results = read_problem(config), []
    kept = Folder(RunLayout(config.run_dir).comparison("cheap"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # its products are too small to share
    for what, run in variants(config, policies, seeds):
        name = f"{run.run_dir.rpartition('/')[2]}-{_cheap_identity(run)}.json"
        if kept.exists(name):
            found = RunResult.from_json(kept.read_json(name))
        else:
            found = replace(CheapRun(run, problem).run(), policy=what)
            kept.write_json(name, found.to_json())
        results.append(found)
        _say(found, console)
    torch.set_num_threads(threads)
    return results


def _cheap_identity(config: RunConfig) -> str:
    """A hash of all that a run on the frozen student comes from."""
    from llkd.distill.stage import manifest_of

    layout = RunLayout(config.run_dir)
    labelled = require_complete(Folder(layout.labels("corpus")), "label")
    tested = require_complete(Folder(layout.rows("test")), "ingest")
    files = [Folder(layout.rows(dataset)).read_bytes(FILES) for dataset in ("corpus", "test")]
    settings = {
        "code": _code_identity(),
        "files": [hashlib.sha256(content).hexdigest() for content in files],
        "labels": dict(labelled.results),
        "test": tested.fingerprint,
        **config.cheap.model_dump(),
    }
    distilled = manifest_of(config, labelled)
    return Manifest("cheap", settings, distilled.fingerprint).fingerprint


@cache
def _code_identity() -> str:
    """A hash of this package: who changes a policy wants to see what it does now."""
    package = Path(__file__).parents[2]
    found = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def run_fine_tuned(
    config: RunConfig, policies: Sequence[str], seeds: int, console: Console
) -> list[RunResult]:
    """All runs by fine-tuning; those that are done are not done again. Needs Ray."""
    from llkd.pipeline import check_run, run_all

    results: list[RunResult] = []
    done: list[RunConfig] = []
    for what, run in variants(config, policies, seeds):
        check_run(run)
        if not Folder(run.run_dir).exists(METRICS):
            _borrow_first_scores(run, done)
            run_all(run, console)
        done.append(run)
        results.append(_read_result(what, run, Folder(run.run_dir).read_json(METRICS)))
        _say(results[-1], console)
    return results


def _borrow_first_scores(config: RunConfig, done: Sequence[RunConfig]) -> None:
    """Let a run begin with the first epoch's scores of one that is done: students of a seed start
    as the same."""
    from llkd.distill.epoch_stats import read_stats
    from llkd.distill.stage import manifest_of

    layout, wanted = RunLayout(config.run_dir), _first_scores(config)
    mine = Folder(layout.uncertainty(0))
    if wanted is None or mine.names():
        return
    for other in done:
        found = _first_scores(other)
        if found is not None and found[0] == wanted[0] and found[1] >= wanted[1]:
            labelled = require_complete(Folder(layout.labels("corpus")), "label")
            open_stage(Folder(layout.epochs), manifest_of(config, labelled))
            seconds = read_stats(other, 0)["seconds"]["score"] + _borrowed_seconds(other)
            Folder(layout.root).write_json(BORROWED, {"seconds": seconds})
            theirs = Folder(RunLayout(other.run_dir).uncertainty(0))
            for name in theirs.names():
                mine.write_bytes(name, theirs.read_bytes(name))
            return


def _borrowed_seconds(config: RunConfig) -> float:
    """What the first scores of a run would have taken, had it not had those of another."""
    root = Folder(config.run_dir)
    return float(root.read_json(BORROWED)["seconds"]) if root.exists(BORROWED) else 0.0


def _first_scores(config: RunConfig) -> tuple[tuple[Any, ...], bool] | None:
    """What the scores of epoch 0 come from, and whether whole distributions are kept; None for a
    policy that needs none."""

    policy, student, selection = policy_of(config), config.student, config.selection
    if not policy.uses_uncertainty:
        return None
    comes_from = (
        student.model, student.revision, student.max_length, student.precision, student.lora,
        config.seed, selection.uncertainty, selection.mc_dropout, calibration_settings(config),
    )  # fmt: skip
    return comes_from, policy.uses_student_probs


def _read_result(what: str, config: RunConfig, metrics: dict[str, Any]) -> RunResult:
    """What a finished run came to."""
    from llkd.distill.epoch_stats import read_stats

    tested, selection = metrics["student"]["test"], metrics["selection"]
    return RunResult(
        policy=what,
        seed=config.seed,
        accuracy=tested["accuracy"],
        macro_f1=tested["macro_f1"],
        row_visits_fraction=selection["row_visits_fraction"],
        unique_rows_fraction=selection["unique_rows_fraction"],
        seconds=metrics["seconds"]["distill"] + _borrowed_seconds(config),
        epochs=tuple(read_stats(config, epoch) for epoch in range(selection["epochs"])),
        reliability=_read_reliability(config, selection["epochs"] - 1),
    )


def _read_reliability(config: RunConfig, epoch: int) -> dict[str, Any]:
    """How often the teacher is right, by the signals of an epoch."""
    from llkd.distill.selection import Selector
    from llkd.store.schema import shard_starts

    if config.corpus.label_column is None:
        return {}
    rows = Folder(RunLayout(config.run_dir).rows("corpus"))
    manifest = read_manifest(rows)
    assert manifest is not None
    counts = manifest.results["rows"]
    selector = Selector(config, shard_starts(counts))
    scored = epoch if policy_of(config).uses_uncertainty else None
    found = []
    for shard in range(len(counts)):
        row_n, signals = selector.signals(shard, scored)
        gold_n = rows.read_shard(shard, [GOLD])[GOLD].fill_null(-1).to_numpy()[row_n]
        found.append((signals, gold_n))
    gold_n = np.concatenate([gold for _, gold in found])
    return reliability(reduce(_joined, (signals for signals, _ in found)), gold_n)


def _joined(one: Signals, other: Signals) -> Signals:
    uncertainty_n = None
    if one.uncertainty_n is not None and other.uncertainty_n is not None:
        uncertainty_n = np.concatenate([one.uncertainty_n, other.uncertainty_n])
    label_n, confidence_n, position_n = (
        np.concatenate([getattr(one, name), getattr(other, name)])
        for name in ("label_n", "confidence_n", "position_n")
    )
    return Signals(label_n, confidence_n, uncertainty_n, position_n)


def _say(result: RunResult, console: Console) -> None:
    console.print(
        f"  {result.policy} seed {result.seed}: macro-F1 {result.macro_f1:.3f}, accuracy "
        f"{result.accuracy:.3f}, row visits {result.row_visits_fraction:.1%}, "
        f"{result.seconds:.1f} s"
    )
