"""Compares a config with what a run directory holds, before any work is done."""

from dataclasses import replace

from llkd.cluster.integrity import is_whole_file
from llkd.config.run import RunConfig
from llkd.distill.stage import manifest_of as distill_manifest
from llkd.ingest.stage import manifest_of as ingest_manifest
from llkd.results.predict import manifest_of as predict_manifest
from llkd.results.predict import pass_over_test
from llkd.results.save_student import manifest_of as export_manifest
from llkd.store.folder import Folder
from llkd.store.manifest import (
    FILES,
    Manifest,
    begun,
    changed_settings,
    check_begun,
    delete_stage,
    read_manifest,
)
from llkd.store.schema import RunLayout
from llkd.teacher.ensemble import manifest_of as combine_manifest
from llkd.teacher.stage import manifest_of as label_manifest


def check_run(config: RunConfig, follows_gold: bool = False) -> bool:
    """Compare the config with every stage that has begun.

    Args:
        config: the run.
        follows_gold: whether to delete the stages that differ only by the rows labelled by hand, so that they
            are made again. Nothing is deleted if anything else differs. The corpus and its labels stay.

    Returns:
        Whether a student was deleted.

    Raises:
        FingerprintError: a setting differs; the error names it.
    """
    layout = RunLayout(config.run_dir)
    stale: list[str] = []
    for dataset in config.datasets:
        ingested, rows = ingest_manifest(config, dataset), Folder(layout.rows(dataset))
        former = read_manifest(rows)
        if dataset == "gold" and follows_gold and former and changed_settings(former, ingested):
            stale += _of_gold(config)
            continue
        check_begun(rows, ingested)
        labelled = _check_labels(config, dataset, ingested)
        if dataset == "corpus":
            distilled = distill_manifest(config, labelled)
            retrains = follows_gold and _differs_by_gold(Folder(layout.epochs), distilled)
            if retrains:
                stale += [
                    layout.test_predictions,
                    layout.student,
                    layout.checkpoints,
                    layout.epochs,
                ]
                continue
            check_begun(Folder(layout.epochs), distilled)
            exported = export_manifest(distilled)
            check_begun(Folder(layout.student), exported)
        if dataset == "test" and not retrains and is_whole_file(rows, FILES):
            wanted = pass_over_test(config)
            check_begun(wanted.folder, predict_manifest(wanted, exported, ingested, rows))
    for uri in stale:
        delete_stage(Folder(uri))
    return retrains


def _of_gold(config: RunConfig) -> list[str]:
    """The folders of the rows labelled by hand and of their labels; a comparison shares its owner's."""
    layout = RunLayout(config.run_dir)
    if layout.owner != layout:
        return []
    apart = [RunLayout(config.run_dir, one.teacher_number) for one in config.of_each_teacher]
    labels = [each.labels("gold") for each in (*apart, layout)]
    return [*labels, layout.rejects("ingest-gold"), layout.rows("gold")]


def _differs_by_gold(folder: Folder, wanted: Manifest) -> bool:
    """Whether a stage has begun with other rows labelled by hand, and is otherwise the wanted one."""
    found = read_manifest(folder)
    if found is None or not begun(folder):
        return False
    changed = changed_settings(found, wanted)
    same = replace(found, settings=wanted.settings).fingerprint == wanted.fingerprint
    return bool(changed) and same and all(key.startswith("gold.") for key in changed)


def _check_labels(config: RunConfig, dataset: str, ingested: Manifest) -> Manifest:
    """Check the labels of each teacher; returns the manifest of those that the student trains on."""
    apart = []
    for alone in config.of_each_teacher:
        labelled = label_manifest(alone, dataset, ingested)
        check_begun(
            Folder(RunLayout(config.run_dir, alone.teacher_number).labels(dataset)), labelled
        )
        apart.append((alone, labelled))
    labelled = combine_manifest(apart) if apart else label_manifest(config, dataset, ingested)
    check_begun(Folder(RunLayout(config.run_dir).labels(dataset)), labelled)
    return labelled
