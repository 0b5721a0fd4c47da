"""What is damaged in a run directory is found before any work is done, and done again.

What is damaged is deleted and its stage opened again, so that the stage does what is missing, as
after a kill. Of an epoch that is trained the selection is made again by its thresholds; where that
cannot be, the epochs from there on are trained again.
"""

from collections.abc import Callable, Iterable, Sequence

from llkd.cluster.integrity import damaged_files, forget, write_record
from llkd.config.run import RunConfig
from llkd.distill.pseudo_labels import STATISTICS
from llkd.distill.selection import policy_of
from llkd.distill.selection_counts import COUNTS
from llkd.distill.state import begun_epochs, trained_epochs
from llkd.distill.worker import STATS
from llkd.errors import DamageError
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, read_manifest, write_manifest
from llkd.store.schema import RunLayout, shard_name
from llkd.teacher.calibrate import CALIBRATION

Say = Callable[[str], None]

LEFT_AWAY = "left away, for nothing needs it any more"


def reopen_damaged(folder: Folder, name: str, say: Say, rejects: Folder | None = None) -> bool:
    """Delete what is damaged of a stage, so that it is made again; returns whether anything was.

    Args:
        folder: of the stage.
        name: what the stage is called on the console.
        say: takes a line for the console.
        rejects: the rows left out of its shards; where they are lost, the shard is made again.

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
    left_out = damaged_files(rejects) if rejects is not None else []
    bad = sorted({*bad, *left_out})
    if not bad:
        return False
    say(_line(name, bad))
    write_manifest(folder, manifest.reopened())
    for file in bad:
        folder.delete_file(file)
    forget(folder, bad)
    if rejects is not None:
        for file in left_out:
            rejects.delete_file(file)
        forget(rejects, left_out)
    return True


def _line(name: str, bad: Sequence[str], then: str = "made again") -> str:
    listed = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
    kind = "shard" if bad[0].startswith("part-") else "file"
    verb = "is" if len(bad) == 1 else "are"
    plural = "" if len(bad) == 1 else "s"
    return f"{name}: {len(bad)} damaged {kind}{plural} ({listed}) {verb} {then}"


def mend_labels(layout: RunLayout, dataset: str, say: Say) -> None:
    """See to the labels of a data set, and to what lies beside those of the corpus."""
    folder = Folder(layout.labels(dataset))
    rejects = Folder(layout.label_rejects(dataset))
    reopen_damaged(folder, folder.uri.rpartition("/")[2], say, rejects)
    if dataset != "corpus":
        return
    _drop_unreadable(folder, [CALIBRATION], "calibration", say)
    free, manifest = Folder(layout.labels("content_free")), read_manifest(folder)
    if free.shards() and (bad := damaged_files(free)):
        say(_line("texts without content", bad))
        free.delete()
        if manifest is not None:
            write_manifest(folder, manifest.reopened())


def _drop_unreadable(folder: Folder, names: Sequence[str], what: str, say: Say) -> list[str]:
    """Delete JSON files that are there and cannot be read; returns which."""
    bad = [name for name in names if not _is_readable(folder, name)]
    if bad:
        say(_line(what, bad))
    for name in bad:
        folder.delete_file(name)
    return bad


def _is_readable(folder: Folder, name: str) -> bool:
    """Whether it can be read, or is not there."""
    try:
        folder.read_json_if_there(name)
    except DamageError:
        return False
    return True


class EpochsMender:
    """Sees to the epochs of one run, and to its student."""

    def __init__(self, config: RunConfig, shards: int, say: Say) -> None:
        """
        Args:
            config: the run.
            shards: of its corpus.
            say: takes a line for the console.
        """
        self._config, self._say = config, say
        self._shards = set(map(shard_name, range(shards)))
        self._layout = RunLayout(config.run_dir)
        self._folder = Folder(self._layout.epochs)

    def mend(self) -> None:
        """Delete what is damaged, and open again what it belongs to."""
        manifest = read_manifest(self._folder)
        if manifest is None or (manifest.complete and self._is_forgotten()):
            return
        reopen_damaged(Folder(self._layout.student), "student", self._say)
        trained = trained_epochs(self._layout)
        if manifest.complete:
            trained = int(manifest.results["epochs"])
            self._mend_checkpoint(manifest)
        self._mend_inputs()
        done = self._read_stats_again(manifest)
        for epoch in begun_epochs(self._layout):
            if not self._mend_epoch(epoch, epoch < trained, done):
                self._go_back(epoch)
                trained, done = trained_epochs(self._layout), False

    def _is_forgotten(self) -> bool:
        """Whether this is a round whose student has done its work and was deleted."""
        left = (Folder(self._layout.student), Folder(self._layout.checkpoints))
        return self._layout.is_round and not any(folder.names() for folder in left)

    def _mend_checkpoint(self, manifest: Manifest) -> None:
        """See that the student can be exported, where it is not yet."""
        from llkd.student.checkpoints import is_whole

        exported, name = read_manifest(Folder(self._layout.student)), manifest.results["checkpoint"]
        checkpoints = Folder(self._layout.checkpoints)
        if (exported is None or not exported.complete) and not is_whole(checkpoints, name, True):
            self._say(f"checkpoints: {name} is damaged, its epochs are trained again")
            Folder(f"{checkpoints.uri}/{name}").delete()
            write_manifest(self._folder, manifest.reopened())

    def _read_stats_again(self, manifest: Manifest) -> bool:
        """Where training is done, restore figures from the manifest's copy; returns whether it is."""
        done = read_manifest(self._folder) == manifest and manifest.complete
        for epoch, stats in enumerate(manifest.results.get("stats", ()) if done else ()):
            folder = Folder(self._layout.epoch(epoch))
            if not _is_readable(folder, STATS) or not folder.exists(STATS):
                self._say(_line(f"epoch {epoch + 1} figures", [STATS]))
                folder.write_json(STATS, stats)
        return done

    def _mend_inputs(self) -> None:
        """What all epochs select by."""
        labels = Folder(self._layout.pseudo_labels)
        expected = self._shards if labels.exists(STATISTICS) else ()
        bad = self._delete_bad(labels, expected, "pseudo-labels")
        _drop_unreadable(labels, [STATISTICS], "pseudo-labels", self._say)
        if bad:
            labels.delete_file(STATISTICS)
        self._delete_bad(Folder(self._layout.validation), (), "rows held out")

    def _delete_bad(
        self, folder: Folder, expected: Iterable[str], name: str, then: str = "made again"
    ) -> list[str]:
        bad = damaged_files(folder, expected)
        if bad:
            self._say(_line(name, bad, then))
        for file in bad:
            folder.delete_file(file)
        return bad

    def _mend_epoch(self, epoch: int, trained: bool, done: bool) -> bool:
        """See to one epoch; returns whether its student can stay what it is. Where training is
        `done`, what only served to choose an epoch is needed no more."""
        folder, name = Folder(self._layout.epoch(epoch)), f"epoch {epoch + 1}"
        lost = _drop_unreadable(folder, [STATS], f"{name} figures", self._say)
        validation = Folder(self._layout.validation_of(epoch))
        if done:
            self._delete_bad(validation, (), f"{name} validation", LEFT_AWAY)
        else:
            held_out = trained and self._config.student.validation_fraction > 0
            expected = {shard_name(0)} if held_out else ()
            lost += self._delete_bad(validation, expected, f"{name} validation")
        selection = Folder(self._layout.selection(epoch))
        selected = self._shards if folder.exists(STATS) else ()
        bad = self._delete_bad(selection, selected, f"{name} selection")
        bad += _drop_unreadable(selection, [COUNTS], f"{name} selection", self._say)
        unscored = self._mend_scores(epoch, needed=bool(lost or bad), trained=trained)
        if lost or (bad and unscored):
            folder.delete_file(STATS)
        return not trained or folder.exists(STATS)

    def _mend_scores(self, epoch: int, needed: bool, trained: bool) -> list[str]:
        """See to the uncertainty of an epoch; returns what is damaged of it."""
        folder = Folder(self._layout.uncertainty(epoch))
        expected = self._shards if needed and policy_of(self._config).uses_uncertainty else ()
        then = LEFT_AWAY if trained and not needed else "made again"
        bad = self._delete_bad(folder, expected, f"epoch {epoch + 1} uncertainty", then)
        if bad and trained:
            write_record(folder, dict.fromkeys(map(shard_name, folder.shards())))
        return bad

    def _go_back(self, epoch: int) -> None:
        """Have an epoch trained again, and those around it of which there is no other checkpoint."""
        from llkd.student.checkpoints import checkpoint_epoch

        checkpoints = Folder(self._layout.checkpoints)
        for name in checkpoints.names():
            if name.startswith("epoch-") and checkpoint_epoch(name) >= epoch:
                Folder(f"{checkpoints.uri}/{name}").delete()
        first = trained_epochs(self._layout) + 1
        self._say(f"epoch {first} and those after it are trained again")
        for folder in (self._folder, Folder(self._layout.student)):
            manifest = read_manifest(folder)
            if manifest is not None and manifest.complete:
                write_manifest(folder, manifest.reopened())


def mend_rounds(config: RunConfig, shards: int, say: Say) -> None:
    """See to the rounds of labelling, where the labels are not all there."""
    rounds = Folder(RunLayout(config.run_dir).rounds)
    for number in rounds.names():
        run = config.model_copy(update={"run_dir": f"{rounds.uri}/{number}"})
        layout, name = RunLayout(run.run_dir), f"round {int(number) + 1}"
        folders = (layout.wanted, layout.answers("corpus"), layout.labels("corpus"))
        for uri in (*folders, layout.predictions("corpus")):
            reopen_damaged(Folder(uri), f"{name} {uri.rpartition('/')[2]}", say)
        EpochsMender(run, shards, lambda line, name=name: say(f"{name} {line}")).mend()  # type: ignore[misc]


def mend(config: RunConfig, datasets: Sequence[str], say: Say) -> None:
    """See to all that a run has made so far.

    Args:
        config: the run.
        datasets: `corpus`, and what else is given.
        say: takes a line for the console.

    Raises:
        StorageError: something is damaged that cannot be made again; the message says what to
            delete.
    """
    layout = RunLayout(config.run_dir)
    for dataset in datasets:
        rejects = Folder(layout.rejects(f"ingest-{dataset}"))
        reopen_damaged(Folder(layout.rows(dataset)), dataset, say, rejects)
        for alone in config.of_each_teacher:
            mend_labels(RunLayout(config.run_dir, alone.teacher_number), dataset, say)
        mend_labels(layout, dataset, say)
    rows, labels = (read_manifest(Folder(of("corpus"))) for of in (layout.rows, layout.labels))
    if rows is None or not (shards := len(rows.results.get("rows", ()))):
        return
    if config.label.in_part and (labels is None or not labels.complete):
        mend_rounds(config, shards, say)
    EpochsMender(config, shards, say).mend()
    reopen_damaged(Folder(layout.test_predictions), "test_predictions", say)
