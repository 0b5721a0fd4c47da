"""The order of the stages, the checks between them, and the metrics at the end."""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape

from llkd.cluster.display import ProgressDisplay
from llkd.config.load import dump_config
from llkd.config.run import RunConfig
from llkd.distill.stage import distill
from llkd.errors import FingerprintError
from llkd.fingerprints import check_run
from llkd.ingest.stage import ingest
from llkd.preflight import needs_student, require_room
from llkd.repair import reopen_damaged, repair
from llkd.results.evaluate import evaluate, measure_predictions
from llkd.results.export import described, folder_of, publish
from llkd.results.hand.estimates import estimate_on_corpus
from llkd.results.hand.sample import write_review, write_sample
from llkd.results.metrics import collect_metrics, figures_of
from llkd.results.predict import Pass, pass_over_corpus, pass_over_test, predict
from llkd.results.save_student import export
from llkd.results.summary import show_predictions, show_summary
from llkd.results.tracking import log_final_metrics, logged_epochs
from llkd.rounds import label_in_rounds
from llkd.store.folder import Folder, portable_path
from llkd.store.lock import held
from llkd.store.manifest import is_complete, require_complete
from llkd.store.schema import METRICS, REPORT, RunLayout
from llkd.store.scratch import clear_dead
from llkd.teacher.calibrate import calibrate
from llkd.teacher.ensemble import combine
from llkd.teacher.examples import with_drawn_examples
from llkd.teacher.gold import gold_notes
from llkd.teacher.stage import label


def run_ingest(config: RunConfig, console: Console) -> None:
    """Cut the corpus and the test set into shards."""
    with _stage(config, console, trains=True) as tracker:
        _ingest(config, config.datasets, tracker, console)


def run_label(config: RunConfig, console: Console) -> None:
    """Label the ingested corpus and test set."""
    with _stage(config, console, trains=True) as tracker:
        if config.label.in_part:
            require_room(config)
            _require_loadable(config)
        _label(config, tracker, console)


def run_distill(config: RunConfig, console: Console) -> None:
    """Train and save the student."""
    with _stage(config, console, trains=True) as tracker:
        _distill(config, tracker, console)


def run_evaluate(config: RunConfig, console: Console) -> None:
    """Measure; write metrics.json and the report; show the summary."""
    started = time.monotonic()
    with _stage(config, console) as tracker:
        metrics = _evaluate(config, tracker, started, console)
        make_report(config, console)
    show_summary(config, metrics, console)


def run_predict(config: RunConfig, console: Console) -> None:
    """Label a whole corpus with the finished student; show the counts by label.

    Raises:
        IncompleteError: the student is not finished.
        FingerprintError: predictions of that name exist, of another student or of other rows.
    """
    layout, dataset = RunLayout(config.run_dir), config.predict.dataset
    with _stage(config, console) as tracker:
        for uri in (layout.rows(dataset), layout.predictions(config.predict.folder)):
            folder = Folder(uri)
            reopen_damaged(folder, folder.uri[len(layout.root) + 1 :], partial(_line, console))
        require_complete(Folder(layout.student), "distill")
        wanted = pass_over_corpus(config)
        try:
            if config.source(dataset) is not config.corpus:
                _ingest(config, [dataset], tracker, console)
            predicted = predict(config, wanted, tracker)
        except FingerprintError as error:
            raise FingerprintError(
                error.what,
                f"{error.remedy} Or give these predictions another predict.name.",
            ) from None
        figures = _measured(config, wanted)
    ingested = require_complete(Folder(layout.rows(dataset)), "ingest")
    show_predictions(wanted.folder, predicted, ingested, figures, console)


def run_export(config: RunConfig, console: Console) -> None:
    """Export the student and the labelled rows; push them if the config says so.

    Raises:
        IncompleteError: the student is not finished.
        ExportError: the export or the push fails.
    """
    with _stage(config, console):
        published = publish(config, partial(_line, console))
    console.print(f"Export    {escape(portable_path(folder_of(config)))}", highlight=False)
    for part, text in described(published).items():
        console.print(f"  {part}: {text}")


def run_sample(config: RunConfig, console: Console, rows: int, blind: bool) -> None:
    """Write rows of the corpus for a person to label, and say how to give them back.

    Args:
        config: the run; its corpus is ingested where necessary.
        console: to print on.
        rows: how many.
        blind: whether to leave out what the teacher says.
    """
    with _stage(config, console) as tracker:
        _ingest(config, ["corpus"], tracker, console)
        folder, found = write_sample(config, rows, blind, tracker)
    uniform = sum(bool(row.uniform) for row in found)
    how = f"{uniform:,} drawn uniformly, {len(found) - uniform:,} where teacher and probes disagree"
    _say_written(console, folder, f"{len(found):,} rows to label: {how}")


def run_review(config: RunConfig, console: Console, rows: int) -> None:
    """Write the rows whose label is most probably wrong, for a person to correct.

    Args:
        config: the run; the teacher has labelled its corpus.
        console: to print on.
        rows: how many.
    """
    with _stage(config, console) as tracker:
        folder, found = write_review(config, rows, tracker)
    _say_written(
        console, folder, f"{len(found):,} rows whose label is doubtful, the most doubtful first"
    )


def _say_written(console: Console, folder: Folder, what: str) -> None:
    path = escape(portable_path(folder.uri))
    console.print(f"{what}", highlight=False)
    console.print(
        f"Files     {path}: rows.csv, rows.parquet, argilla.json, label_studio.json",
        highlight=False,
    )
    console.print(
        "Fill in the column `label` (empty: unknown) in a copy, and set\n"
        "  gold: {path: COPY, text_column: text, label_column: label, probability_column: probability}",
        highlight=False,
    )


def _measured(config: RunConfig, wanted: Pass) -> dict[str, Any] | None:
    """The student's metrics on the predicted rows, written beside the predictions; None without
    gold."""
    source = config.source(wanted.dataset)
    if source is None or source.label_column is None:
        return None
    evaluation = measure_predictions(config, wanted.dataset, wanted.folder)
    figures = figures_of(evaluation, config.task.label_names, auroc=False)
    wanted.folder.write_json(METRICS, {"student": figures})
    return figures


def run_all(config: RunConfig, console: Console) -> None:
    """Run all stages; finished work is not repeated."""
    started = time.monotonic()
    with _stage(config, console, trains=True) as tracker, ThreadPoolExecutor(1) as beside:
        loadable = beside.submit(_require_loadable, config)
        beside.submit(_import_ahead, config)
        try:
            require_room(config)
            _ingest(config, config.datasets, tracker, console)
            loadable.result()
        except BaseException:
            beside.shutdown(wait=False, cancel_futures=True)
            raise
        _label(config, tracker, console)
        _distill(config, tracker, console)
        metrics = _evaluate(config, tracker, started, console)
        make_report(config, console)
    show_summary(config, metrics, console)


def _require_loadable(config: RunConfig) -> None:
    """Load the student once if it is still to be trained.

    Raises:
        StudentError: it cannot be loaded.
    """
    if not needs_student(config):
        return
    from llkd.student.model import require_loadable

    require_loadable(config.student)


def _import_ahead(config: RunConfig) -> None:
    """Import slow modules while other work goes on. An import that fails here fails again where it
    is needed, which reports it."""
    if not needs_student(config):
        return
    import ray.train.torch  # noqa: F401

    from llkd.student.model import model_class

    model_class(config.student)


@contextmanager
def _stage(config: RunConfig, console: Console, trains: bool = False) -> Iterator[Any]:
    """Lock the run directory, check it against the config, repair it, write run.yaml, and show
    progress.

    Args:
        config: the run.
        console: to print on.
        trains: whether other rows labelled by hand than before mean that the student is trained again.
    """
    root = Folder(RunLayout(config.run_dir).root)
    with held(root.uri):
        if check_run(config, follows_gold=trains):
            _line(console, "the rows labelled by hand have changed: the student is trained again")
        root.delete_temporary()
        clear_dead()
        root.write_bytes("run.yaml", dump_config(config).encode())
        console.print(f"[bold]{escape(portable_path(root.uri))}[/]")
        repair(config, config.datasets, partial(_line, console))
        with ProgressDisplay(console) as display:
            yield display.tracker
        root.delete_temporary()  # of tasks that were killed


def _line(console: Console, text: str) -> None:
    console.print(f"  {escape(text)}")


def _ingest(config: RunConfig, datasets: Sequence[str], tracker: Any, console: Console) -> None:
    for dataset in datasets:
        rejects = ingest(config, dataset, tracker).results.get("rejects") or {}
        if rejects:
            listed = ", ".join(f"{reason}: {count:,}" for reason, count in sorted(rejects.items()))
            _line(console, f"ingest {dataset}: rows left out ({listed}), listed in rejects/")


def _label(config: RunConfig, tracker: Any, console: Console) -> None:
    datasets = config.datasets
    labelled_before = is_complete(Folder(RunLayout(config.run_dir).labels("gold")))
    for alone in config.of_each_teacher:
        label(alone, datasets, tracker)
    if config.label.in_part:
        label_in_rounds(config, datasets, tracker)
    elif config.teachers:
        teachers = [(alone, calibrate(alone)) for alone in config.of_each_teacher]
        combine(config, teachers, datasets)
    else:
        label(config, datasets, tracker)
    calibrate(config)
    if config.gold is not None and not labelled_before:
        for line in gold_notes(config):
            _line(console, line)


def _distill(config: RunConfig, tracker: Any, console: Console) -> None:
    require_complete(Folder(RunLayout(config.run_dir).labels("corpus")), "label")
    with logged_epochs(config, tracker, partial(_line, console)):
        distill(config, calibrate(config), tracker)
    export(config)


def _evaluate(config: RunConfig, tracker: Any, started: float, console: Console) -> dict[str, Any]:
    begun_evaluation = time.monotonic()
    calibration = calibrate(config)
    if config.test is not None:
        predict(config, pass_over_test(config), tracker)
    tracker.doing.remote("evaluate")
    found = evaluate(config, calibration)
    estimates = estimate_on_corpus(config, calibration)
    now = time.monotonic()
    metrics = collect_metrics(config, found, estimates, now - begun_evaluation, now - started)
    Folder(RunLayout(config.run_dir).root).write_json(METRICS, metrics)
    log_final_metrics(config, metrics, partial(_line, console))
    return metrics


def make_report(config: RunConfig, console: Console) -> None:
    """Write the report. The run is finished, so an error is only printed."""
    try:
        from llkd.results.report import write_report

        write_report(config)
    except Exception as error:
        traceback.print_exc()
        _line(
            console,
            f"{REPORT} could not be made ({type(error).__name__}: {str(error)[:300]}); the "
            "traceback is in the log. Run jobs/report.py to try again.",
        )


def run_stage(name: str, config: RunConfig, console: Console) -> None:
    """Run a job by name, with the examples drawn for its config."""
    STAGES[name](with_drawn_examples(config), console)


STAGES: dict[str, Callable[[RunConfig, Console], None]] = {
    "ingest": run_ingest,
    "label": run_label,
    "distill": run_distill,
    "evaluate": run_evaluate,
    "predict": run_predict,
    "export": run_export,
    "run": run_all,
}
"""The jobs by name."""
