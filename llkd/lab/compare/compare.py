"""Selection policies compared over seeds, on the same rows and labels.

A fine-tuned run has a run directory of its own, `<run_dir>/compare/<policy>-<seed>`, which reads
the rows and labels of `<run_dir>` (see RunLayout) and resumes like any other. A run on the frozen
student takes seconds and leaves its figures in `<run_dir>/compare/cheap`.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console

from llkd.config.load import changed
from llkd.config.run import RunConfig
from llkd.core.policies import PolicyName, Signals
from llkd.core.policy_names import AUTO
from llkd.distill.epoch_stats import read_stats
from llkd.distill.policy import policy_of
from llkd.distill.probe import read_probe
from llkd.distill.selection import Selector
from llkd.errors import ConfigError
from llkd.lab.compare.results import (
    Comparison,
    RunResult,
    probe_result,
    reliability,
    summarise,
)
from llkd.store.folder import Folder
from llkd.store.manifest import FILES, Manifest, open_stage, read_manifest, require_complete
from llkd.store.schema import GOLD, METRICS, RunLayout, shard_starts
from llkd.teacher.calibrate import calibrate, calibration_settings


def require_comparable(config: RunConfig, policies: Sequence[str]) -> None:
    """Check the policies and the config before the first run.

    Raises:
        ConfigError: there is no test set, or a policy or setting does not exist.
    """
    if config.test is None:
        raise ConfigError(
            "The comparison needs a test set, but test.path is not set",
            "Set test.path to its files.",
        )
    for policy in policies:
        policy_of(variant(config, policy))


def variant(config: RunConfig, spec: str) -> RunConfig:
    """The config of a policy and its own settings.

    Args:
        config: the common config.
        spec: a value of `selection.policy`, or `POLICY:dotted.key=value;dotted.key=value`; POLICY
            may be `package.module:Class`.

    Raises:
        ConfigError: the policy or a setting does not exist.
    """
    policy, _, settings = spec.partition(":")
    if policy not in (*get_args(PolicyName), AUTO) and settings:
        name, _, settings = settings.partition(":")
        policy = f"{policy}:{name}"
    overrides = [setting for setting in settings.split(";") if setting]
    # A trial of all policies in each run would only take time.
    trial = f"selection.trial={str(policy == AUTO).lower()}"
    return changed(config, [f"selection.policy={policy}", trial, *overrides])


def variants(
    config: RunConfig, policies: Sequence[str], seeds: int
) -> Iterator[tuple[str, RunConfig]]:
    """(policy, config) of each run, policy by policy.

    Args:
        config: the common config.
        policies: see `spec` of `variant`.
        seeds: how many, starting at the config's own.
    """
    layout = RunLayout(config.run_dir)
    for policy in policies:
        own = variant(config, policy)
        name = re.sub(r"[^\w.=-]+", "-", policy)
        for seed in range(config.seed, config.seed + seeds):
            run_dir = layout.comparison(f"{name}-{seed}")
            yield policy, own.model_copy(update={"run_dir": run_dir, "seed": seed})


def is_labelled(config: RunConfig) -> bool:
    """Whether corpus and test set are ingested and labelled."""
    layout = RunLayout(config.run_dir)
    folders = [of(dataset) for of in (layout.rows, layout.labels) for dataset in ("corpus", "test")]
    found = [read_manifest(Folder(folder)) for folder in folders]
    return all(manifest is not None and manifest.complete for manifest in found)


BORROWED = "borrowed.json"
"""In the run directory of a run that copied its first scores: the seconds these took."""


def comparison(
    config: RunConfig, policies: Sequence[str], seeds: int, cheap: bool, console: Console
) -> Comparison:
    """Run all policies and seeds on existing labels; see `run_cheap` and `run_fine_tuned`."""
    from llkd.results.evaluate import measure_teacher

    run = run_cheap if cheap else run_fine_tuned
    results = run(config, policies, seeds, console)
    teacher = measure_teacher(config, "test", calibrate(config))
    return Comparison(results, summarise(results), teacher.macro_f1)


def run_cheap(
    config: RunConfig, policies: Sequence[str], seeds: int, console: Console
) -> list[RunResult]:
    """All runs on the frozen student. Requires rows and labels; finished runs are not repeated."""
    import torch

    from llkd.lab.compare.linear_probe import CheapRun, fitted_probe, read_problem

    problem, results = read_problem(config), []
    kept = Folder(RunLayout(config.run_dir).comparison("cheap"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are too small for more
    for policy, run in variants(config, policies, seeds):
        name = f"{run.run_dir.rpartition('/')[2]}-{_cheap_identity(run)}.json"
        if kept.exists(name):
            result = RunResult.from_json(kept.read_json(name))
        else:
            result = replace(CheapRun(run, problem).run(), policy=policy)
            kept.write_json(name, result.to_json())
        results.append(result)
        _print(result, console)
    results += [fitted_probe(problem, config.seed + number) for number in range(seeds)]
    torch.set_num_threads(threads)
    return results


def _cheap_identity(config: RunConfig) -> str:
    """A hash of all inputs of a run on the frozen student."""
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
    """A hash of the package `llkd`: a changed policy must not reuse old results."""
    package = Path(__file__).parents[2]
    identity = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        identity.update(path.read_bytes())
    return identity.hexdigest()


def run_fine_tuned(
    config: RunConfig, policies: Sequence[str], seeds: int, console: Console
) -> list[RunResult]:
    """All runs by fine-tuning; finished runs are not repeated. Needs Ray."""
    from llkd.fingerprints import check_run
    from llkd.pipeline import run_all

    results: list[RunResult] = []
    done: list[RunConfig] = []
    for policy, run in variants(config, policies, seeds):
        check_run(run)
        if not Folder(run.run_dir).exists(METRICS):
            _copy_first_scores(run, done)
            run_all(run, console)
        done.append(run)
        results.append(_read_result(policy, run, Folder(run.run_dir).read_json(METRICS)))
        _print(results[-1], console)
    probes = [_read_probe(run) for run in done[:seeds]]
    return results + [probe for probe in probes if probe is not None]


def _read_probe(config: RunConfig) -> RunResult | None:
    """The linear probe of a finished run, which is the same for every policy; None if it is lost."""
    tested = Folder(config.run_dir).read_json(METRICS).get("probe", {}).get("test")
    found = read_probe(config)
    if tested is None or found is None:
        return None
    return probe_result(config.seed, tested["accuracy"], tested["macro_f1"], found["seconds"])


def _copy_first_scores(config: RunConfig, done: Sequence[RunConfig]) -> None:
    """Start a run with the first epoch's scores of a finished one: students of a seed start out
    identical."""
    from llkd.distill.stage import manifest_of

    layout, needed = RunLayout(config.run_dir), _first_scores(config)
    own = Folder(layout.uncertainty(0))
    if needed is None or own.names():
        return
    for other in done:
        scores = _first_scores(other)
        if scores is not None and scores[0] == needed[0] and scores[1] >= needed[1]:
            labelled = require_complete(Folder(layout.labels("corpus")), "label")
            open_stage(Folder(layout.epochs), manifest_of(config, labelled))
            seconds = read_stats(other, 0)["seconds"]["score"] + _copied_seconds(other)
            Folder(layout.root).write_json(BORROWED, {"seconds": seconds})
            source = Folder(RunLayout(other.run_dir).uncertainty(0))
            for name in source.names():
                own.write_bytes(name, source.read_bytes(name))
            return


def _copied_seconds(config: RunConfig) -> float:
    """Seconds that the first scores took in the run they were copied from; 0 if not copied."""
    root = Folder(config.run_dir)
    return float(root.read_json(BORROWED)["seconds"]) if root.exists(BORROWED) else 0.0


def _first_scores(config: RunConfig) -> tuple[tuple[Any, ...], bool] | None:
    """(the inputs of the scores of epoch 0, whether distributions are kept); None for a policy that
    scores no rows."""
    policy, student, selection = policy_of(config), config.student, config.selection
    if not policy.uses_uncertainty:
        return None
    inputs = (
        student.model, student.revision, student.max_length, student.precision, student.lora,
        config.seed, selection.uncertainty, selection.mc_dropout, calibration_settings(config),
    )  # fmt: skip
    return inputs, policy.uses_student_probs


def _read_result(policy: str, config: RunConfig, metrics: dict[str, Any]) -> RunResult:
    """The result of a finished run."""
    tested, selection = metrics["student"]["test"], metrics["selection"]
    return RunResult(
        policy=policy,
        seed=config.seed,
        accuracy=tested["accuracy"],
        macro_f1=tested["macro_f1"],
        row_visits_fraction=selection["row_visits_fraction"],
        unique_rows_fraction=selection["unique_rows_fraction"],
        seconds=metrics["seconds"]["distill"] + _copied_seconds(config),
        epochs=tuple(read_stats(config, epoch) for epoch in range(selection["epochs"])),
        reliability=_read_reliability(config, selection["epochs"] - 1),
    )


def _read_reliability(config: RunConfig, epoch: int) -> dict[str, Any]:
    """The teacher's accuracy by the signals of an epoch."""
    if config.corpus.label_column is None:
        return {}
    rows = Folder(RunLayout(config.run_dir).rows("corpus"))
    manifest = read_manifest(rows)
    assert manifest is not None
    counts = manifest.results["rows"]
    selector = Selector(config, shard_starts(counts), policy_of(config))
    scored = epoch if selector.policy.uses_uncertainty else None
    signals, gold = [], []
    for shard in range(len(counts)):
        row_n, shard_signals = selector.signals(shard, scored)
        signals.append(shard_signals)
        gold.append(rows.read_shard(shard, [GOLD])[GOLD].fill_null(-1).to_numpy()[row_n])
    return reliability(_joined(signals), np.concatenate(gold))


def _joined(parts: Sequence[Signals]) -> Signals:
    """The measured signals of several shards as one."""
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("label_n", "confidence_n", "uncertainty_n", "position_n")
        if getattr(parts[0], name) is not None
    }
    return Signals(**{"uncertainty_n": None, **columns})


def _print(result: RunResult, console: Console) -> None:
    console.print(
        f"  {result.policy} seed {result.seed}: macro-F1 {result.macro_f1:.3f}, accuracy "
        f"{result.accuracy:.3f}, row visits {result.row_visits_fraction:.1%}, "
        f"{result.seconds:.1f} s"
    )
