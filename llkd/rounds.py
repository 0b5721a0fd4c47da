"""Label a part of the corpus in rounds. Each round chooses rows and the teacher labels them; a
student trained on all labels so far then guides the next round's choice.

Round NN is a run in <run_dir>/rounds/NN, on the rows of <run_dir>. It holds the chosen rows, the
teacher's answers for them, and the labels of all rounds up to and including it. The stages that
train the run's student train its student too. The answers of all rounds become the run's labels.
"""

import time
from collections.abc import Sequence
from typing import Any

from llkd.config.run import RunConfig
from llkd.core.acquisition import round_sizes
from llkd.distill.epoch_stats import best_epoch, read_stats
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
from llkd.teacher.actor import CONTENT_FREE_ITEM
from llkd.teacher.calibrate import RANDOM_SLICE, calibrate
from llkd.teacher.merge_rounds import merge
from llkd.teacher.stage import label
from llkd.teacher.stage import manifest_of as label_manifest


def label_in_rounds(config: RunConfig, datasets: Sequence[str], tracker: Any) -> None:
    """Label a part of the corpus and all of the other data sets; finished work is not repeated.

    Args:
        config: the run; `label.budget` is below 1.
        datasets: `corpus`, and those to label as a whole.
        tracker: the progress tracker.

    Raises:
        DataError: the budget is less than one row.
        FingerprintError: a round was made with other settings.
        RejectLimitError: the teacher refused too many rows of the budget.
    """
    started = time.monotonic()
    layout = RunLayout(config.run_dir)
    ingested = require_complete(Folder(layout.rows("corpus")), "ingest")
    wanted = label_manifest(config, "corpus", ingested)
    found = read_manifest(Folder(layout.labels("corpus")))
    if found is None or not found.complete:
        is_chosen(config, 0, ingested)  # refuses other settings before any work is done
    if not open_stage(Folder(layout.labels("corpus")), wanted).complete:
        done = _run_rounds(config, datasets, ingested, tracker)
        results = {**_random_slice(layout), "seconds": time.monotonic() - started}
        labels, rejects = Folder(layout.labels("corpus")), Folder(layout.label_rejects("corpus"))
        merge(labels, rejects, [layout.round(number) for number in range(done)], wanted, results)
    label(config, [dataset for dataset in datasets if dataset != "corpus"], tracker)
    for name in Folder(layout.rounds).names():
        _delete_student(RunLayout(f"{layout.rounds}/{name}"))


def of_round(config: RunConfig, number: int) -> RunConfig:
    """The config of a round."""
    return config.model_copy(update={"run_dir": RunLayout(config.run_dir).round(number).root})


def _run_rounds(
    config: RunConfig, datasets: Sequence[str], ingested: Manifest, tracker: Any
) -> int:
    """Label round by round; returns the number of rounds."""
    sizes = _sizes(config, sum(ingested.results["rows"]))
    layout = RunLayout(config.run_dir)
    if not begun(Folder(layout.round(0).answers)):
        Folder(layout.labels(CONTENT_FREE_ITEM[0])).delete()  # of labels that the user has deleted
    for number, size in enumerate(sizes):
        basis = _basis(config, number, ingested)
        if not is_chosen(config, number, basis):
            if number and not _learn(config, number - 1, tracker):
                return number
            choose(config, number, size, basis)
            chosen = f"{size:,} of {sum(ingested.results['rows']):,} rows chosen"
            tracker.note.remote(f"round {number + 1}/{len(sizes)}: {chosen}")
        if number:
            _delete_student(layout.round(number - 1))
        # The first round's engines label the other data sets too.
        label(of_round(config, number), ["corpus"] if number else datasets, tracker)
        _require_few_rejects(config, number, sum(sizes))
        if number + 1 < len(sizes):  # a student trains on them
            _merge_until(layout, number)
    return len(sizes)


def _require_few_rejects(config: RunConfig, number: int, rows: int) -> None:
    """Check the rejects of the rounds so far against the `rows` of all rounds.

    Raises:
        RejectLimitError: they exceed `max_reject_fraction`.
    """
    layout = RunLayout(config.run_dir)
    rounds = [layout.round(earlier) for earlier in range(number + 1)]
    answered = [require_complete(Folder(each.answers), "label") for each in rounds]
    rejected = sum(each.results["rejected"] for each in answered)
    if rejected > config.max_reject_fraction * rows:
        raise RejectLimitError(
            f"The teacher refused {rejected:,} of the {rows:,} rows of label.budget, more than "
            f"max_reject_fraction = {config.max_reject_fraction} allows. They are listed in "
            f"{rounds[-1].label_rejects('corpus')} and the same folder of earlier rounds."
        )


def _sizes(config: RunConfig, rows: int) -> list[int]:
    """The number of rows of each round."""
    wanted = config.label
    sizes = round_sizes(rows, wanted.budget, wanted.rounds, wanted.first)
    if not sizes:
        raise DataError(
            f"label.budget = {wanted.budget:g} of {rows:,} rows is less than one row",
            "Raise it.",
        )
    return sizes


def _basis(config: RunConfig, number: int, ingested: Manifest) -> Manifest:
    """The manifest that the choice of a round's rows depends on: the corpus's in the first round,
    later that of the predictions of the previous round's student.

    Raises:
        FingerprintError: that student's training was begun with other settings.
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
    """The prediction pass of a round's student."""
    return Pass("corpus", Folder(layout.predictions("corpus")), probabilities=True)


def _merge_until(layout: RunLayout, number: int) -> None:
    """Write the labels of a round: the answers of all rounds up to it."""
    rounds = [layout.round(earlier) for earlier in range(number + 1)]
    answered = require_complete(Folder(rounds[-1].answers), "label")
    wanted = Manifest("label", {"label.round": number}, answered.fingerprint)
    merge(Folder(rounds[-1].labels("corpus")), None, rounds, wanted, _random_slice(layout))


def _random_slice(layout: RunLayout) -> dict[str, Any]:
    """The rule that drew the rows of the first round; calibration recognises them by it."""
    chosen = require_complete(Folder(layout.round(0).wanted), "label")
    return {RANDOM_SLICE: chosen.results[RANDOM_SLICE]}


def _learn(config: RunConfig, number: int, tracker: Any) -> bool:
    """Train the student of a round and predict the corpus with it; returns whether another round
    follows."""
    run = of_round(config, number)
    layout = RunLayout(run.run_dir)
    epochs = Folder(layout.epochs)
    trained = read_manifest(epochs)
    deleted = not Folder(layout.checkpoints).names() and not Folder(layout.student).names()
    if trained is not None and trained.complete and deleted:
        epochs.delete()  # the next round's choice is lost, so its student is trained again
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
    """The agreement of a round's student with the teacher on the held-out rows: macro-F1."""
    distilled = require_complete(Folder(RunLayout(run.run_dir).epochs), "distill")
    return float(read_stats(run, distilled.results["epoch"])["validation"]["macro_f1"])


def _delete_student(layout: RunLayout) -> None:
    """Delete a round's student and predictions, which served only to choose the next round's rows.
    Training statistics are kept."""
    served = (layout.checkpoints, layout.student, layout.predictions("corpus"), layout.candidates)
    for uri in served:
        Folder(uri).delete()
