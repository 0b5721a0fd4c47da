"""The state of a run's epochs: those begun, those trained, and the inputs that all share."""

from typing import Any

from llkd.cluster.integrity import read_record, record_shards
from llkd.core.calibration import Calibration
from llkd.core.thresholds import Thresholds
from llkd.distill.epoch_stats import STATS, read_stats
from llkd.distill.holdout import make_validation
from llkd.distill.pseudo_labels import make_pseudo_labels
from llkd.distill.refine import refine, with_estimated_prior
from llkd.distill.selection import Selector
from llkd.distill.selection_counts import COUNTS
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout


def trained_epochs(layout: RunLayout) -> int:
    """The number of epochs trained up to the newest whole checkpoint."""
    from llkd.student.checkpoints import checkpoint_epoch, last_checkpoint

    name = last_checkpoint(Folder(layout.checkpoints))
    return 0 if name is None else checkpoint_epoch(name) + 1


def record_epoch(layout: RunLayout, epoch: int) -> None:
    """Record the shards of a trained epoch."""
    record_shards(Folder(layout.uncertainty(epoch)))
    record_shards(Folder(layout.selection(epoch)))


def prepare_epochs(selector: Selector, calibration: Calibration, tracker: Any) -> None:
    """Make the inputs that all epochs share, and the missing shards of earlier selections.

    Args:
        selector: of the run.
        calibration: of the corpus's labels.
        tracker: the progress tracker.

    Raises:
        DataError: the corpus is too small to hold rows out.
        StorageError: their own inputs are damaged too.
    """
    layout = RunLayout(selector.config.run_dir)
    refine(selector, calibration, tracker)
    make_pseudo_labels(selector.config, selector.shards, calibration, selector.keeps_teacher_probs)
    make_validation(selector, with_estimated_prior(selector.config, calibration))
    for epoch in begun_epochs(layout):
        if Folder(layout.epoch(epoch)).exists(STATS):
            _complete_selection(selector, epoch)


def _complete_selection(selector: Selector, epoch: int) -> None:
    """Make the missing files of an epoch's selection by its thresholds.

    Epochs of a finished student are not scored again: a shard that has lost its uncertainty too
    stays missing, and the counts have no rows of it.
    """
    layout = RunLayout(selector.config.run_dir)
    folder = Folder(layout.selection(epoch))
    missing = set(range(selector.shards)) - folder.shards()
    if missing and selector.policy.uses_uncertainty:
        missing &= Folder(layout.uncertainty(epoch)).shards()
    counted = folder.exists(COUNTS)
    if counted and not missing:
        return
    if missing:
        thresholds = Thresholds.from_json(read_stats(selector.config, epoch)["thresholds"])
        selector.select_by(epoch, thresholds, sorted(missing))
    if not counted:
        folder.write_json(COUNTS, selector.recount(epoch).to_json(), indent=None)
    if read_record(folder) is not None:
        record_epoch(layout, epoch)


def begun_epochs(layout: RunLayout) -> list[int]:
    """The epochs that have a folder."""
    return [int(name) for name in Folder(layout.epochs).names() if name.isdigit()]
