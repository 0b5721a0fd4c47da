"""The finished student, as a directory that `transformers` loads, with a model card."""

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from llkd import __version__
from llkd.checksums import close_stage
from llkd.config import RunConfig
from llkd.errors import StorageError
from llkd.manifest import Manifest, open_stage, require_complete
from llkd.schema import RunLayout
from llkd.scratch import scratch_folder
from llkd.storage import Folder, local_copy, upload_folder


def export(config: RunConfig) -> Manifest:
    """Write `student/` from the chosen epoch's checkpoint; its manifest comes last and makes it count.

    Raises:
        IncompleteError: distillation has not run to its end.
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
    with local_copy(f"{layout.checkpoints}/{distilled.results['checkpoint']}") as directory:
        load_checkpoint(Path(directory), model)
    model = without_adapters(model)
    tokenizer.model_max_length = config.student.max_length  # what it was trained with
    with scratch_folder() as local:
        try:
            model.save_pretrained(local)
            tokenizer.save_pretrained(local)
            (local / "README.md").write_text(model_card(config, distilled), encoding="utf-8")
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"Cannot write the student into {local}: {error}. Make room there, or name another "
                "directory in TMPDIR, and run the same command again."
            ) from error
        upload_folder(local, layout.student)
        written = Folder(str(local)).files()
        crcs = {name: Folder(str(local)).crc32(name) for name in written}
    finished = manifest.finished({"checkpoint": distilled.results["checkpoint"]})
    return close_stage(folder, finished, crcs)


def manifest_of(distilled: Manifest) -> Manifest:
    """What determines the exported student."""
    return Manifest("export", {}, distilled.fingerprint)


def model_card(config: RunConfig, distilled: Manifest) -> str:
    """A card in the hub's format: metadata, what the student is, how it came about."""
    results = distilled.results
    labels = "\n".join(
        f"- {_plain(name)}" + (f": {_plain(text)}" if text else "")
        for name, text in config.task.labels.items()
    )
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [knowledge-distillation, pseudo-labels, llkd]
---

# A text classifier distilled from {_plain(Path(config.teacher.model).name)}

Task: {_plain(config.task.instruction)}

Labels:

{labels}

| | |
|---|---|
| student | {_plain(Path(config.student.model).name)} |
| teacher | {_plain(Path(config.teacher.model).name)}, calibration {config.teacher.calibration} |
| selection policy | {config.selection.policy} |
| corpus | {results["rows"]:,} unlabelled rows |
| epochs | {results["epochs"]}, the student is that after epoch {results["epoch"] + 1} |
| rows trained on, of rows x epochs | {results["row_visits_fraction"]:.1%} |
| longest text | {config.student.max_length} tokens; the rest is cut |

Trained by LLKD {__version__} on the teacher's pseudo-labels; no gold label was used. Where the
teacher is wrong in a systematic way, the student has learnt to be wrong too.

```python
from transformers import pipeline

classify = pipeline("text-classification", model="path/to/this/directory", truncation=True)
```
"""


def _plain(text: Any) -> str:
    """Text on one line, that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~$])", r"\\\1", " ".join(str(text).split()))
