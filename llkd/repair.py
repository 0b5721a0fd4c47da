"""Finds damaged files of a run directory before any work starts, and repairs them.

Damaged files are deleted and their stage is reopened; it then recreates what is missing, as after a
kill. The table at `EpochsRepair` lists the consequences of damage to an epoch.
"""

from collections.abc import Callable, Iterable, Sequence

from llkd.cluster.integrity import damaged_files, forget, read_record, record_shards
from llkd.config.run import RunConfig
from llkd.distill.epoch_stats import STATS
from llkd.distill.holdout import RULE
from llkd.distill.policy import policy_of
from llkd.distill.pseudo_labels import STATISTICS
from llkd.distill.selection_counts import COUNTS
from llkd.distill.state import begun_epochs, trained_epochs
from llkd.errors import DamageError
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, read_manifest, reopen
from llkd.store.schema import RunLayout, shard_name
from llkd.teacher.calibrate import CALIBRATION

Print = Callable[[str], None]

REDONE, DROPPED, LOST = "made again", "dropped: no longer needed", "lost"


def reopen_damaged(folder: Folder, name: str, say: Print, rejects: Folder | None = None) -> bool:
    """Delete the damaged files of a stage and reopen it; returns whether there were any.

    Args:
        folder: the folder of the stage.
        name: the name of the stage on the console.
        say: prints a line.
        rejects: the folder of its rejected rows; a shard whose rejects are damaged is redone.

    Raises:
        StorageError: the manifest is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    if manifest.complete:
        rows = manifest.results.get("rows", ())
        bad = damaged_files(folder, map(shard_name, range(len(rows))))
    else:
        bad = [file for file in damaged_files(folder) if folder.exists(file)]
    bad_rejects = damaged_files(rejects) if rejects is not None else []
    bad = sorted({*bad, *bad_rejects})
    if not bad:
        return False
    say(_line(name, bad))
    reopen(folder)
    _forget_files(folder, bad)
    if rejects is not None:
        _forget_files(rejects, bad_rejects)
    return True


def _forget_files(folder: Folder, names: Sequence[str]) -> None:
    for name in names:
        folder.delete_file(name)
    forget(folder, names)


def _delete_damaged(
    folder: Folder, expected: Iterable[str], name: str, say: Print, then: str = REDONE
) -> list[str]:
    """Delete the damaged files of a folder; returns the names of damaged and of missing expected files."""
    bad = damaged_files(folder, expected)
    _delete(folder, bad, name, say, then)
    return bad


def _delete(folder: Folder, bad: Sequence[str], name: str, say: Print, then: str) -> None:
    if bad:
        say(_line(name, bad, then))
    for file in bad:
        folder.delete_file(file)


def _line(name: str, bad: Sequence[str], then: str = REDONE) -> str:
    listed = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
    kind = "shard" if bad[0].startswith("part-") else "file"
    verb = "is" if len(bad) == 1 else "are"
    plural = "" if len(bad) == 1 else "s"
    return f"{name}: {len(bad)} damaged {kind}{plural} ({listed}) {verb} {then}"


def _repair_labels(layout: RunLayout, dataset: str, say: Print) -> None:
    """Repair the labels of a data set, and with those of the corpus their calibration."""
    folder = Folder(layout.labels(dataset))
    rejects = Folder(layout.label_rejects(dataset))
    reopen_damaged(folder, folder.uri.rpartition("/")[2], say, rejects)
    if dataset != "corpus":
        return
    _drop_unreadable(folder, [CALIBRATION], "calibration", say)
    free = Folder(layout.labels("content_free"))
    if free.shards() and (bad := damaged_files(free)):
        say(_line("texts without content", bad))
        free.delete()
        reopen(folder)


def _drop_unreadable(folder: Folder, names: Sequence[str], what: str, say: Print) -> list[str]:
    """Delete existing JSON files that cannot be parsed; returns their names."""
    bad = [name for name in names if not _is_readable(folder, name)]
    if bad:
        say(_line(what, bad))
    for name in bad:
        folder.delete_file(name)
    return bad


def _is_readable(folder: Folder, name: str) -> bool:
    """Whether a JSON file can be parsed or does not exist."""
    try:
        folder.read_json_if_there(name)
    except DamageError:
        return False
    return True


class EpochsRepair:
    """Repairs the epochs of one run, and its student.

    | damaged                   | epoch of a finished student  | any other epoch                 |
    |---------------------------|------------------------------|---------------------------------|
    | pseudo-labels, held out   | made again                   | made again                      |
    | stats.json                | copied from the manifest     | selected and trained again      |
    | validation                | dropped                      | selected and trained again      |
    | selection                 | selected by its thresholds   | selected by its thresholds      |
    | uncertainty               | dropped                      | dropped if trained, else scored |
    | selection and uncertainty | lost: stays incomplete       | scored and trained again        |
    """

    def __init__(self, config: RunConfig, shards: int, say: Print) -> None:
        """
        Args:
            config: the run.
            shards: the number of shards of its corpus.
            say: prints a line.
        """
        self._config, self._say = config, say
        self._shards = set(map(shard_name, range(shards)))
        self._layout = RunLayout(config.run_dir)
        self._folder = Folder(self._layout.epochs)

    def repair(self) -> None:
        """Delete damaged files and reopen their stages."""
        manifest = read_manifest(self._folder)
        if manifest is None or (manifest.complete and self._is_spent_round()):
            return
        reopen_damaged(Folder(self._layout.student), "student", self._say)
        trained, finished = trained_epochs(self._layout), False
        if manifest.complete:
            trained = int(manifest.results["epochs"])
            finished = self._has_student(manifest)
        if finished:
            self._restore_stats(manifest)
        self._repair_inputs()
        for epoch in begun_epochs(self._layout):
            if finished:
                self._repair_finished(epoch)
            elif not self._repair_epoch(epoch, epoch < trained):
                self._go_back(epoch)
                trained = trained_epochs(self._layout)

    def _is_spent_round(self) -> bool:
        """Whether this is a round whose student has served and been deleted."""
        left = (Folder(self._layout.student), Folder(self._layout.checkpoints))
        return self._layout.is_round and not any(folder.names() for folder in left)

    def _has_student(self, manifest: Manifest) -> bool:
        """Whether the student is saved or can be restored; if not, its epochs are reopened."""
        from llkd.student.checkpoints import is_whole

        exported, name = read_manifest(Folder(self._layout.student)), manifest.results["checkpoint"]
        checkpoints = Folder(self._layout.checkpoints)
        if (exported is not None and exported.complete) or is_whole(checkpoints, name, True):
            return True
        self._say(f"checkpoints: {name} is damaged, its epochs are trained again")
        Folder(f"{checkpoints.uri}/{name}").delete()
        reopen(self._folder)
        return False

    def _restore_stats(self, manifest: Manifest) -> None:
        """Restore damaged stats.json from the copies in the manifest."""
        for epoch, stats in enumerate(manifest.results.get("stats", ())):
            folder = Folder(self._layout.epoch(epoch))
            if not _is_readable(folder, STATS) or not folder.exists(STATS):
                self._say(_line(f"epoch {epoch + 1} figures", [STATS]))
                folder.write_json(STATS, stats)

    def _repair_inputs(self) -> None:
        """Repair the pseudo-labels and the held-out rows, which all epochs share."""
        labels = Folder(self._layout.pseudo_labels)
        expected = self._shards if labels.exists(STATISTICS) else ()
        bad = _delete_damaged(labels, expected, "pseudo-labels", self._say)
        _drop_unreadable(labels, [STATISTICS], "pseudo-labels", self._say)
        if bad:
            labels.delete_file(STATISTICS)
        validation = Folder(self._layout.validation)
        _delete_damaged(validation, (), "rows held out", self._say)
        _drop_unreadable(validation, [RULE], "rows held out", self._say)

    def _repair_finished(self, epoch: int) -> None:
        """Repair an epoch of a finished student, without training."""
        name = f"epoch {epoch + 1}"
        validation = Folder(self._layout.validation_of(epoch))
        _delete_damaged(validation, (), f"{name} validation", self._say, DROPPED)
        if self._delete_selection(epoch, finished=True):
            self._say(
                f"{name}: its selection stays incomplete, because its uncertainty is damaged too"
            )

    def _repair_epoch(self, epoch: int, trained: bool) -> bool:
        """Repair an epoch of an unfinished student; returns False if it must be trained again."""
        folder, name = Folder(self._layout.epoch(epoch)), f"epoch {epoch + 1}"
        lost = _drop_unreadable(folder, [STATS], f"{name} figures", self._say)
        held_out = trained and self._config.student.validation_fraction > 0
        lost += _delete_damaged(
            Folder(self._layout.validation_of(epoch)),
            {shard_name(0)} if held_out else (),
            f"{name} validation",
            self._say,
        )
        if self._delete_selection(epoch, rescored=bool(lost) or not trained) or lost:
            folder.delete_file(STATS)
        return not trained or folder.exists(STATS)

    def _delete_selection(
        self, epoch: int, *, finished: bool = False, rescored: bool = False
    ) -> list[str]:
        """Delete the damaged files of an epoch's selection and uncertainty.

        Args:
            epoch: from 0.
            finished: whether the student is finished: its epochs are not scored again.
            rescored: whether the epoch is scored again in any case.

        Returns:
            The shards that have lost both: selection needs the uncertainty.
        """
        name, say = f"epoch {epoch + 1}", self._say
        selection = Folder(self._layout.selection(epoch))
        uncertainty = Folder(self._layout.uncertainty(epoch))
        selected = Folder(self._layout.epoch(epoch)).exists(STATS)
        recorded = finished and read_record(selection) is not None
        bad = damaged_files(selection, self._shards if selected and not recorded else ())
        scored = policy_of(self._config).uses_uncertainty
        unscored = damaged_files(uncertainty, bad if scored else ())
        lost = [shard for shard in bad if shard in unscored]
        then = LOST if finished else REDONE
        _delete(selection, lost, f"{name} selection", say, then)
        _delete(uncertainty, lost, f"{name} uncertainty", say, then)
        _delete(selection, [n for n in bad if n not in lost], f"{name} selection", say, REDONE)
        unneeded = [shard for shard in unscored if shard not in lost]
        then = REDONE if rescored else DROPPED
        _delete(uncertainty, unneeded, f"{name} uncertainty", say, then)
        _drop_unreadable(selection, [COUNTS], f"{name} selection", say)
        for folder, gone in ((uncertainty, unscored), (selection, lost)):
            if gone and read_record(folder) is not None:
                record_shards(folder)
        return lost

    def _go_back(self, epoch: int) -> None:
        """Reopen the training at an epoch, or earlier if the previous checkpoint no longer exists."""
        from llkd.student.checkpoints import checkpoint_epoch

        checkpoints = Folder(self._layout.checkpoints)
        for name in checkpoints.names():
            if name.startswith("epoch-") and checkpoint_epoch(name) >= epoch:
                Folder(f"{checkpoints.uri}/{name}").delete()
        first = trained_epochs(self._layout) + 1
        self._say(f"epoch {first} and those after it are trained again")
        reopen(self._folder)
        reopen(Folder(self._layout.student))


def _repair_rounds(config: RunConfig, shards: int, say: Print) -> None:
    """Repair the rounds of an incomplete labelling."""
    rounds = Folder(RunLayout(config.run_dir).rounds)
    for number in rounds.names():
        run = config.model_copy(update={"run_dir": f"{rounds.uri}/{number}"})
        layout, name = RunLayout(run.run_dir), f"round {int(number) + 1}"
        folders = (layout.wanted, layout.answers, layout.labels("corpus"))
        for uri in (*folders, layout.predictions("corpus")):
            reopen_damaged(Folder(uri), f"{name} {uri.rpartition('/')[2]}", say)
        EpochsRepair(run, shards, lambda line, name=name: say(f"{name} {line}")).repair()  # type: ignore[misc]


def repair(config: RunConfig, datasets: Sequence[str], say: Print) -> None:
    """Repair all files that a run has written so far.

    Args:
        config: the run.
        datasets: the data sets of the config.
        say: prints a line.

    Raises:
        StorageError: a damaged file cannot be repaired; the remedy says what to delete.
    """
    layout = RunLayout(config.run_dir)
    for dataset in datasets:
        rejects = Folder(layout.rejects(f"ingest-{dataset}"))
        reopen_damaged(Folder(layout.rows(dataset)), dataset, say, rejects)
        for alone in config.of_each_teacher:
            _repair_labels(RunLayout(config.run_dir, alone.teacher_number), dataset, say)
        _repair_labels(layout, dataset, say)
    rows, labels = (read_manifest(Folder(of("corpus"))) for of in (layout.rows, layout.labels))
    if rows is None or not (shards := len(rows.results.get("rows", ()))):
        return
    if config.label.in_part and (labels is None or not labels.complete):
        _repair_rounds(config, shards, say)
    EpochsRepair(config, shards, say).repair()
    reopen_damaged(Folder(layout.test_predictions), "test_predictions", say)
