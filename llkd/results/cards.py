"""The cards of the student and of the labelled rows, in the hub's own format.

Metadata is written by `huggingface_hub` and read back by it, so that a card which is made is one that
the hub's own library understands. Label names and descriptions stand in the cards; texts do not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llkd import __version__
from llkd.config.run import RunConfig
from llkd.errors import ExportError
from llkd.results.card_words import (
    OnnxFacts,
    calibration_error,
    eval_results,
    figures_of_both,
    figures_of_the_teacher,
    how_labelled,
    hub_name,
    human_labels,
    labelled_elsewhere,
    labels_table,
    language,
    linked,
    model_name,
    model_source,
    onnx_section,
    plain,
    student_name,
    table,
    teacher_name,
    what_was_chosen,
)
from llkd.store.manifest import Manifest
from llkd.store.schema import CONFIDENCE, GOLD, ID, LABEL, PROBS, TEXT

CARD = "README.md"
TAGS = ("knowledge-distillation", "pseudo-labels", "llkd")

_SIZES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"),
    (10**11, "10B<n<100B"), (10**12, "100B<n<1T"),
)  # fmt: skip
"""(rows that are too many, what the hub calls fewer)."""


@dataclass(frozen=True)
class LabelledFacts:
    """What the data set's card tells of the rows; C classes."""

    rows_c: tuple[int, ...]
    """Rows by label."""
    confidence_c: tuple[float, ...]
    """Sums of their confidence."""
    arrow_bytes: int
    file_bytes: int

    @property
    def rows(self) -> int:
        """Of all labels."""
        return sum(self.rows_c)


def model_card(
    config: RunConfig,
    distilled: Manifest,
    metrics: Mapping[str, Any] | None = None,
    onnx: OnnxFacts | None = None,
) -> str:
    """The student's card: metadata, what it is, how it came about, how good it is, its limits.

    Args:
        config: the run.
        distilled: the manifest of distillation.
        metrics: what metrics.json holds, once the student is measured.
        onnx: what is known of its ONNX form, where there is one.

    Raises:
        ExportError: the hub's library does not read from it what was written.
    """
    from huggingface_hub import ModelCard, ModelCardData

    export, student = config.export, config.student
    measured = (metrics or {}).get("student", {}).get("test")
    data = ModelCardData(
        base_model=hub_name(student.model),
        datasets=[export.dataset_repo] if export.dataset_repo else None,
        language=language(config),
        license=export.license,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=[*TAGS, *(["onnx"] if onnx else [])],
        metrics=["accuracy", "f1"] if measured else None,
        model_name=student_name(config) if measured else None,
        eval_results=eval_results(config, measured) if measured else None,
    )
    results, teacher = distilled.results, teacher_name(config)
    loss = student.loss.kind
    rows = {
        "student": model_name(student.model),
        "teacher": teacher,
        "corpus": f"{results['rows']:,} rows with the teacher's labels, from unlabelled text",
        "rows trained on": f"{results['row_visits_fraction']:.1%} of rows x epochs, selection "
        f"policy `{config.selection.policy}`",
        "epochs": f"{results['epochs']}; the student is that after epoch {results['epoch'] + 1}",
        "loss": f"`{loss}`, batches of {student.batch_size}, learning rate "
        f"{student.learning_rate:g}" + (f", LoRA of rank {student.lora.rank}" if student.lora else ""),
        "longest text": f"{student.max_length} tokens; the rest is cut",
        "seed": config.seed,
    }  # fmt: skip
    text = f"""
# {plain(student_name(config))}: a text classifier{"" if labelled_elsewhere(config) else " distilled from a language model"}

Task: {plain(config.task.instruction)}

{labels_table(config)}

## How it came about

{table(("", ""), rows.items())}

The teacher gave each row of an unlabelled corpus a label and a confidence. {how_labelled(config)}
In each epoch the student was trained on {what_was_chosen(config)}. Made by LLKD {__version__}.
{human_labels(config)}

## How good it is

{figures_of_both(config, metrics)}

## Limits

- It has learnt from the teacher: where the teacher is wrong in a systematic way, so is the student.
- It knows these {len(config.task.labels)} labels alone, and gives one of them to any text, also to
  one that none fits.
- It was made for texts like those of its corpus. On others it was not measured.
- Its probability of a label is not the chance that the label is right{calibration_error(measured)}.

## Use

```python
from transformers import pipeline

classify = pipeline("text-classification", model={model_source(config)!r}, truncation=True)
```
{onnx_section(config, onnx) if onnx else ""}"""
    return _checked(ModelCard, data, text)


def dataset_card(
    config: RunConfig, facts: LabelledFacts, features: Any, metrics: Mapping[str, Any] | None
) -> str:
    """The labelled rows' card, by which `datasets` knows their features.

    Args:
        config: the run.
        facts: counts of the rows.
        features: `datasets.Features` of the files.
        metrics: what metrics.json holds, if it is there.

    Raises:
        ExportError: the hub's library does not read from it what was written.
    """
    from datasets import DatasetInfo, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard, DatasetCardData

    elsewhere = labelled_elsewhere(config)
    export = config.export
    name = f"{student_name(config)}, labelled" + ("" if elsewhere else " by a language model")
    data = DatasetCardData(
        pretty_name=name,
        language=language(config),
        license=export.license,
        annotations_creators=None if elsewhere else ["machine-generated"],
        task_categories=["text-classification"],
        size_categories=[next((n for most, n in _SIZES if facts.rows < most), "n>1T")],
        tags=list(TAGS),
    )
    train = SplitInfo("train", num_bytes=facts.arrow_bytes, num_examples=facts.rows)
    info = DatasetInfo(
        features=features, splits=SplitDict({"train": train}), dataset_size=facts.arrow_bytes,
        download_size=facts.file_bytes,
    )  # fmt: skip
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    files = {"data_files": [{"split": "train", "path": "data/train-*"}]}
    MetadataConfigs({"default": files}).to_dataset_card_data(data)
    about = {
        TEXT: "the text, as it was in the corpus",
        ID: "the row's own identifier in the corpus",
        LABEL: "the teacher's label, a class index with its name",
        CONFIDENCE: "the teacher's probability of that label, after calibration",
        PROBS: "its probabilities of all labels, in their order",
        GOLD: "the label that the corpus came with; null where it had none. Not used to train",
    }
    student = f" It was made to train {linked(export.model_repo)}." if export.model_repo else ""
    shares = [
        (
            plain(label), plain(said or ""), f"{n:,}", f"{n / max(facts.rows, 1):.1%}",
            f"{total / n:.3f}" if n else "-",
        )
        for (label, said), n, total in zip(
            config.task.labels.items(), facts.rows_c, facts.confidence_c, strict=True
        )
    ]  # fmt: skip
    text = f"""
# {plain(name)}

{facts.rows:,} texts, labelled by {teacher_name(config)}{"" if elsewhere else " and by no person"}.{student}

Task: {plain(config.task.instruction)}

{table(("label", "what the teacher was told", "rows", "share", "mean confidence"), shares)}

| column | |
|---|---|
{chr(10).join(f"| `{column}` | {about[column]} |" for column in features)}

## How the labels came about

{how_labelled(config)} The label is the most probable one. Rows that could not be read or labelled are
left out. {human_labels(config)} Made by LLKD {__version__}.

## How good they are

{figures_of_the_teacher(config, metrics)}

## Limits

- {"Who made these labels is not known here." if elsewhere else "These are a model's labels."} Do not measure another model by them.
- What the teacher does not know or gets wrong in a systematic way is wrong here.
- Its confidence says which labels are likelier to be right, and is not itself the chance of that.
- Every text has one of the {len(config.task.labels)} labels, also one that none fits.
- The texts are the corpus's own; what was allowed with them and who is named in them was not looked at.

## Use

```python
from datasets import load_dataset

rows = load_dataset({export.dataset_repo or "path/to/this/directory"!r}, split="train")
sure = rows.filter(lambda row: row["{CONFIDENCE}"] > 0.9)
```
"""
    return _checked(DatasetCard, data, text)


def _checked(kind: Any, data: Any, text: str) -> str:
    """A card of metadata and text; what the hub's library reads from it is what was written."""
    content = f"---\n{data.to_yaml()}\n---\n{text}"
    try:
        read = kind(content)
    except ValueError as error:
        raise ExportError(f"The hub's library does not read the card: {error}") from error
    if read.data.to_dict() != data.to_dict() or read.text != text:
        raise ExportError(
            "The hub's library reads another card than the one that was written.",
            "Rename the label that holds something unusual, or set export to other values.",
        )
    return content
