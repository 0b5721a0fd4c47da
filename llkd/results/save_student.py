"""Save the finished student as a directory that `transformers` loads, with a model card.

The card is written before the student is measured, because it is one of the recorded files;
`jobs/export.py` writes one with the metrics (llkd/results/export.py).
"""

from pathlib import Path

from safetensors import SafetensorError

from llkd.cluster.integrity import close_stage
from llkd.config.run import RunConfig
from llkd.distill.probe import put_into
from llkd.errors import StorageError
from llkd.results.cards import CARD, model_card
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, open_stage, require_complete
from llkd.store.schema import RunLayout
from llkd.store.scratch import scratch_folder
from llkd.store.transfer import local_copy, upload_folder


def export(config: RunConfig) -> Manifest:
    """Write `student/` from the chosen epoch's checkpoint, its manifest last.

    Raises:
        IncompleteError: distillation is incomplete.
        StorageError: the student cannot be written.
    """
    from llkd.student.checkpoints import load_checkpoint
    from llkd.student.model import load_student, without_adapters

    layout = RunLayout(config.run_dir)
    distilled = require_complete(Folder(layout.epochs), "distill")
    folder = Folder(layout.student)
    manifest = open_stage(folder, manifest_of(distilled))
    if manifest.complete:
        return manifest
    tokenizer, model = load_student(config.student, config.task.label_names)
    if distilled.results["keeps_probe"]:
        put_into(config, model)
    else:
        with local_copy(f"{layout.checkpoints}/{distilled.results['checkpoint']}") as directory:
            load_checkpoint(Path(directory), model)
    model = without_adapters(model)
    tokenizer.model_max_length = config.student.max_length  # as in training
    with scratch_folder() as local:
        try:
            model.save_pretrained(local)
            tokenizer.save_pretrained(local)
            (local / CARD).write_text(model_card(config, distilled), encoding="utf-8")
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"Cannot write the student into {local}: {error}.",
                "Free space there or set TMPDIR to another directory, and run the same command "
                "again.",
            ) from error
        upload_folder(local, layout.student)
        written = Folder(str(local)).files()
        crcs = {name: Folder(str(local)).crc32(name) for name in written}
    finished = manifest.finished({"checkpoint": distilled.results["checkpoint"]})
    return close_stage(folder, finished, crcs)


def manifest_of(distilled: Manifest) -> Manifest:
    """The manifest of the saved student, which depends on distillation alone."""
    return Manifest("export", {}, distilled.fingerprint)
