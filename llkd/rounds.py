"""Labelling a part of the corpus, in rounds: rows are chosen, the teacher labels them, and a
student learns from all labels so far to choose the next ones.

Round NN is a run of its own in <run_dir>/rounds/NN, on the rows of <run_dir>. It holds the rows
that were wanted, the teacher's answers to them, and the labels of all rounds up to it; its student
is made by the same stages as the run's. In the end the answers of all rounds are the run's labels.
"""

import time
from collections.abc import Sequence
from typing import Any

from llkd.config.run import RunConfig
from llkd.core.acquisition import round_sizes
from llkd.distill.epoch_stats import read_stats
from llkd.distill.holdout import best_epoch
from llkd.distill.stage import distill
from llkd.distill.stage import manifest_of as distill_manifest
from llkd.errors import DataError, RejectLimitError
from llkd.results.predict import Pass, predict
from llkd.results.predict import manifest_of as predict_manifest
from llkd.results.save_student import export
from llkd.results.save_student import manifest_of as export_manifest
from llkd.store.folder import Folder
from llkd.store.manifest import (
    Manifest,
    begun,
    check_begun,
    open_stage,
    read_manifest,
    require_complete,
)
from llkd.store.schema import RunLayout
from llkd.teacher.acquire import choose, is_chosen
from llkd.teacher.calibrate import RANDOM_SLICE, calibrate
from llkd.teacher.merge_rounds import merge
from llkd.teacher.stage import CONTENT_FREE_ITEM, label
from llkd.teacher.stage import manifest_of as label_manifest


def label_in_rounds(config: RunConfig, datasets: Sequence[str], tracker: Any) -> None:
    """Make the labels of a part of the corpus, and of all other data sets; what is there is left
    alone.

    Args:
        config: the run; `label.budget` is below 1.
        datasets: `corpus`, and those that are labelled whole.
        tracker: the progress tracker.

    Raises:
        DataError: the budget is less than a row.
        FingerprintError: a round was made with other settings.
    """
    started = time.monotonic()
    layout = RunLayout(config.run_dir)
    ingested = require_complete(Folder(layout.rows("corpus")), "ingest")
    wanted = label_manifest(config, "corpus", ingested)
    found = read_manifest(Folder(layout.labels("corpus")))
    if found is None or not found.complete:
        is_chosen(config, 0, ingested)  # refuses other settings before anything is touched
    if not open_stage(Folder(layout.labels("corpus")), wanted).complete:
        done = _run_rounds(config, datasets, ingested, tracker)
        rounds = [RunLayout(layout.round(number)) for number in range(done)]
        results = {**_random_slice(layout), "seconds": time.monotonic() - started}
        merge(layout, rounds, wanted, results)
    label(config, [dataset for dataset in datasets if dataset != "corpus"], tracker)
    for name in Folder(layout.rounds).names():
        _forget_student(RunLayout(f"{layout.rounds}/{name}"))


def of_round(config: RunConfig, number: int) -> RunConfig:
    """The config of a round's run."""
    return config.model_copy(update={"run_dir": RunLayout(config.run_dir).round(number)})


def _run_rounds(
    config: RunConfig, datasets: Sequence[str], ingested: Manifest, tracker: Any
) -> int:
    """Label round by round; returns how many there were."""
    sizes = _sizes(config, sum(ingested.results["rows"]))
    layout = RunLayout(config.run_dir)
    if not begun(Folder(RunLayout(layout.round(0)).answers("corpus"))):
        Folder(layout.labels(CONTENT_FREE_ITEM[0])).delete()  # of labels that were deleted
    for number, size in enumerate(sizes):
        basis = _basis(config, number, ingested)
        if not is_chosen(config, number, basis):
            if number and not _learn(config, number - 1, tracker):
                return number
            choose(config, number, size, basis)
            chosen = f"{size:,} of {sum(ingested.results['rows']):,} rows chosen"
            tracker.note.remote(f"round {number + 1}/{len(sizes)}: {chosen}")
        if number:
            _forget_student(RunLayout(layout.round(number - 1)))
        # The other data sets are labelled beside the first rows, by the same engines.
        label(of_round(config, number), ["corpus"] if number else datasets, tracker)
        _require_few_rejects(config, number, sum(sizes))
        if number + 1 < len(sizes):  # a student learns from them
            _merge_until(layout, number)
    return len(sizes)


def _require_few_rejects(config: RunConfig, number: int, rows: int) -> None:
    """See that the rounds so far left no more rows out than all of them may, of so many rows.

    Raises:
        RejectLimitError: they did.
    """
    layout = RunLayout(config.run_dir)
    rounds = [RunLayout(layout.round(earlier)) for earlier in range(number + 1)]
    answered = [require_complete(Folder(each.answers("corpus")), "label") for each in rounds]
    rejected = sum(each.results["rejected"] for each in answered)
    if rejected > config.max_reject_fraction * rows:
        raise RejectLimitError(
            f"The teacher refused {rejected:,} of the {rows:,} rows of label.budget, more than "
            f"max_reject_fraction = {config.max_reject_fraction} allows. They are listed in "
            f"{rounds[-1].label_rejects('corpus')} and those of the rounds before."
        )


def _sizes(config: RunConfig, rows: int) -> list[int]:
    """Rows of each round."""
    asked = config.label
    sizes = round_sizes(rows, asked.budget, asked.rounds, asked.first)
    if not sizes:
        raise DataError(
            f"label.budget = {asked.budget:g} of {rows:,} rows is less than a row",
            "Raise it.",
        )
    return sizes


def _basis(config: RunConfig, number: int, ingested: Manifest) -> Manifest:
    """The manifest of what the rows of a round are chosen by: of the first the corpus's, later
    that of the predictions which the student of the round before makes.

    Raises:
        FingerprintError: that student was begun with other settings.
    """
    if number == 0:
        return ingested
    before = of_round(config, number - 1)
    layout = RunLayout(before.run_dir)
    distilled = distill_manifest(before, require_complete(Folder(layout.labels("corpus")), "label"))
    check_begun(Folder(layout.epochs), distilled)
    exported = export_manifest(distilled)
    return predict_manifest(_pass(layout), exported, ingested, Folder(layout.rows("corpus")))


def _pass(layout: RunLayout) -> Pass:
    """What the student of a round is asked."""
    return Pass("corpus", Folder(layout.predictions("corpus")), probabilities=True)


def _merge_until(layout: RunLayout, number: int) -> None:
    """Write the labels of a round: the answers of all rounds up to and with it."""
    rounds = [RunLayout(layout.round(earlier)) for earlier in range(number + 1)]
    answered = require_complete(Folder(rounds[-1].answers("corpus")), "label")
    wanted = Manifest("label", {"label.round": number}, answered.fingerprint)
    merge(rounds[-1], rounds, wanted, _random_slice(layout))


def _random_slice(layout: RunLayout) -> dict[str, Any]:
    """What tells the rows of the first round from the others."""
    chosen = require_complete(Folder(RunLayout(layout.round(0)).wanted), "label")
    return {RANDOM_SLICE: chosen.results[RANDOM_SLICE]}


def _learn(config: RunConfig, number: int, tracker: Any) -> bool:
    """Train the student of a round and let it predict the corpus; returns whether there is a round
    after it."""
    run = of_round(config, number)
    layout = RunLayout(run.run_dir)
    epochs = Folder(layout.epochs)
    trained = read_manifest(epochs)
    forgotten = not Folder(layout.checkpoints).names() and not Folder(layout.student).names()
    if trained is not None and trained.complete and forgotten:
        epochs.delete()  # the choice that it was made for is gone: it is made again
    distill(run, calibrate(run), tracker)
    patience = config.label.patience
    scores = (
        [_score(of_round(config, earlier)) for earlier in range(number + 1)] if patience else []
    )
    if patience and number - best_epoch(scores) >= patience:
        tracker.note.remote(f"round {number + 1}: no better student, labelling stops")
        return False
    export(run)
    predict(run, _pass(layout), tracker)
    return True


def _score(run: RunConfig) -> float:
    """How far the student of a round agrees with the teacher on the rows held out: macro-F1."""
    distilled = require_complete(Folder(RunLayout(run.run_dir).epochs), "distill")
    return float(read_stats(run, distilled.results["epoch"])["validation"]["macro_f1"])


def _forget_student(layout: RunLayout) -> None:
    """Delete what only served to choose the rows after a round; how it was trained stays told."""
    served = (layout.checkpoints, layout.student, layout.predictions("corpus"), layout.candidates)
    for uri in served:
        Folder(uri).delete()
