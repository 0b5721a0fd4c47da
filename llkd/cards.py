"""The cards of the student and of the labelled rows, in the hub's own format.

Metadata is written by `huggingface_hub` and read back by it, so that a card which is made is one that
the hub's own library understands. Label names and descriptions stand in the cards; texts do not.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llkd import __version__
from llkd.config import RunConfig, TeacherConfig
from llkd.errors import ExportError
from llkd.manifest import Manifest
from llkd.schema import CONFIDENCE, GOLD, ID, LABEL, PROBS, TEXT, RunLayout
from llkd.sources import DATASETS_PREFIX

CARD = "README.md"
TAGS = ("knowledge-distillation", "pseudo-labels", "llkd")
PAPER = "[arXiv 2411.08028](https://arxiv.org/abs/2411.08028)"

_SIZES = (
    (10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"),
    (10**11, "10B<n<100B"), (10**12, "100B<n<1T"),
)  # fmt: skip
"""(rows that are too many, what the hub calls fewer)."""


@dataclass(frozen=True)
class OnnxFacts:
    """What the student's card tells of its ONNX form."""

    texts: int
    """How many it was checked on."""
    difference: float
    """The largest between two probabilities, the student's own and the ONNX form's."""
    pad_id: int
    pad_token: str


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
        base_model=_hub_name(student.model),
        datasets=[export.dataset_repo] if export.dataset_repo else None,
        language=_language(config),
        license=export.license,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=[*TAGS, *(["onnx"] if onnx else [])],
        metrics=["accuracy", "f1"] if measured else None,
        model_name=_name(config) if measured else None,
        eval_results=_eval_results(config, measured) if measured else None,
    )
    results, teacher = distilled.results, _teacher_name(config)
    loss = student.loss.kind
    rows = {
        "student": _model(student.model),
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
# {_plain(_name(config))}: a text classifier{"" if _elsewhere(config) else " distilled from a language model"}

Task: {_plain(config.task.instruction)}

{_labels_table(config)}

## How it came about

{_table(("", ""), rows.items())}

The teacher gave each row of an unlabelled corpus a label and a confidence. {_labelling(config)}
In each epoch the student was trained on {_chosen(config)}. Made by LLKD {__version__}.
{_human_labels(config)}

## How good it is

{_figures(config, metrics)}

## Limits

- It has learnt from the teacher: where the teacher is wrong in a systematic way, so is the student.
- It knows these {len(config.task.labels)} labels alone, and gives one of them to any text, also to
  one that none fits.
- It was made for texts like those of its corpus. On others it was not measured.
- Its probability of a label is not the chance that the label is right{_calibration_error(measured)}.

## Use

```python
from transformers import pipeline

classify = pipeline("text-classification", model={_model_source(config)!r}, truncation=True)
```
{_onnx_section(config, onnx) if onnx else ""}"""
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

    elsewhere = _elsewhere(config)
    export = config.export
    name = f"{_name(config)}, labelled" + ("" if elsewhere else " by a language model")
    data = DatasetCardData(
        pretty_name=name,
        language=_language(config),
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
    student = f" It was made to train {_linked(export.model_repo)}." if export.model_repo else ""
    shares = [
        (
            _plain(label), _plain(said or ""), f"{n:,}", f"{n / max(facts.rows, 1):.1%}",
            f"{total / n:.3f}" if n else "-",
        )
        for (label, said), n, total in zip(
            config.task.labels.items(), facts.rows_c, facts.confidence_c, strict=True
        )
    ]  # fmt: skip
    text = f"""
# {_plain(name)}

{facts.rows:,} texts, labelled by {_teacher_name(config)}{"" if elsewhere else " and by no person"}.{student}

Task: {_plain(config.task.instruction)}

{_table(("label", "what the teacher was told", "rows", "share", "mean confidence"), shares)}

| column | |
|---|---|
{chr(10).join(f"| `{column}` | {about[column]} |" for column in features)}

## How the labels came about

{_labelling(config)} The label is the most probable one. Rows that could not be read or labelled are
left out. {_human_labels(config)} Made by LLKD {__version__}.

## How good they are

{_teacher_figures(config, metrics)}

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
            "The hub's library reads another card than the one that was written. Rename the label "
            "that holds something unusual, or set export to other values."
        )
    return content


def _plain(text: Any) -> str:
    """Text on one line, that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~$!])", r"\\\1", " ".join(str(text).split()))


def _table(header: tuple[str, ...], rows: Any) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _labels_table(config: RunConfig) -> str:
    labels = config.task.labels.items()
    if not any(text for _, text in labels):
        return _table(("label",), [(_plain(name),) for name, _ in labels])
    header = ("label", "what the teacher was told")
    return _table(header, [(_plain(name), _plain(text or "")) for name, text in labels])


def _name(config: RunConfig) -> str:
    """How the student is called: by its repository, or by the run."""
    repo = config.export.model_repo
    return repo.rpartition("/")[2] if repo else RunLayout(config.run_dir).name


def _language(config: RunConfig) -> str | list[str] | None:
    language = config.export.language
    return list(language) if isinstance(language, tuple) else language


def _hub_name(model: str) -> str | None:
    """A model's name at the hub; None for a directory of this machine."""
    on_hub = not Path(model).is_dir() and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model)
    return model if on_hub else None


def _linked(name: str) -> str:
    return f"[{_plain(name)}](https://huggingface.co/{name})"


def _model(model: str) -> str:
    name = _hub_name(model)
    if name is not None:
        return _linked(name)
    try:
        kind = json.loads((Path(model) / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, KeyError):
        return f"{_plain(Path(model).name)} (a local directory)"
    return f"{_plain(Path(model).name)} (a local directory that holds a {_plain(kind)} model)"


def _teacher_name(config: RunConfig) -> str:
    return ", ".join(_one_teacher(teacher) for teacher in config.teachers or (config.teacher,))


def _one_teacher(teacher: TeacherConfig) -> str:
    if teacher.engine == "table":
        return "labels made elsewhere"
    if teacher.engine in ("vllm", "transformers"):
        return _model(teacher.model)
    return _plain(Path(teacher.model).name)


def _calibration(config: RunConfig) -> str:
    kinds = sorted({teacher.calibration for teacher in config.teachers or (config.teacher,)})
    given = ", with the labels' shares given" if config.teacher.prior else ""
    return f"calibration `{'`, `'.join(kinds)}`{given}"


def _elsewhere(config: RunConfig) -> bool:
    """Whether labels are of engines of which LLKD knows nothing: a table, or one of the user's."""
    return any(t.engine == "table" or ":" in t.engine for t in config.teachers or (config.teacher,))


def _labelling(config: RunConfig) -> str:
    """How the labels came about."""
    teachers, kinds = config.teachers or (config.teacher,), _calibration(config)
    if _elsewhere(config):
        return f"Labels were taken as they were made elsewhere ({kinds})."
    most = max(teacher.max_text_tokens for teacher in teachers)
    units = {"characters" if t.engine == "openai" else "tokens" for t in teachers}
    cut = f"; the teacher saw at most {most} tokens of a text" if units == {"tokens"} else ""
    return f"Its log-probability of every label was read ({kinds}){cut}."


def _chosen(config: RunConfig) -> str:
    """The rows of an epoch."""
    policy = config.selection.policy
    if policy == "llkd":
        return f"rows of which the teacher was confident and the student uncertain, after {PAPER}"
    if policy == "all":
        return "all rows"
    return f"rows that the selection policy `{policy}` chose"


def _human_labels(config: RunConfig) -> str:
    """What people's labels were used for."""
    if _elsewhere(config):
        return "Whether people gave any of them is not known here."
    used = []
    if count := len(config.task.examples):
        used.append(f"{count} worked {'example' if count == 1 else 'examples'} in the prompt")
    if config.task.examples_from is not None:
        used.append("examples in the prompt, drawn from a labelled file")
    if any(t.calibration == "temperature" for t in config.teachers or (config.teacher,)):
        used.append("the labelled rows that the calibration was fitted to")
    if not used:
        return "No label of a person went into it."
    return f"No label of a person went into it but {' and '.join(used)}."


def _test_name(config: RunConfig) -> str:
    """The test set's name at the hub, or that it is the run's own."""
    assert config.test is not None
    path = config.test.paths[0]
    return path.removeprefix(DATASETS_PREFIX) if path.startswith(DATASETS_PREFIX) else "test set"


def _eval_results(config: RunConfig, measured: Mapping[str, Any]) -> list[Any]:
    from huggingface_hub import EvalResult

    assert config.test is not None
    name = _test_name(config)
    named: dict[str, Any] = {
        "task_type": "text-classification", "task_name": "Text classification",
        "dataset_type": name.replace(" ", "-"), "dataset_name": name,
        "dataset_split": config.test.dataset_args.get("split"),
    }  # fmt: skip
    figures = [("accuracy", "Accuracy", "accuracy", None)]
    figures += [("f1", "Macro-F1", "macro_f1", {"average": "macro"})]  # type: ignore[list-item]
    return [
        EvalResult(
            **named, metric_type=kind, metric_name=title, metric_value=round(measured[key], 4),
            metric_args=arguments,
        )
        for kind, title, key, arguments in figures
    ]  # fmt: skip


def _figures(config: RunConfig, metrics: Mapping[str, Any] | None) -> str:
    """Teacher and student on the test set."""
    measured = (metrics or {}).get("student", {}).get("test")
    if config.test is None:
        return "It was not measured: the run has no test set."
    if not measured:
        return (
            "It was not measured when this card was written. "
            "`jobs/export.py` writes one with the figures of `metrics.json`."
        )
    assert metrics is not None
    overall = [
        (name, *(f"{found[key]:.3f}" for key in ("accuracy", "macro_f1", "ece")))
        for name, found in (("teacher", metrics["teacher"]["test"]), ("student", measured))
    ]
    by_label = [
        (
            _plain(name), *(f"{found[key]:.3f}" for key in ("precision", "recall", "f1")),
            f"{found['support']:,}",
        )
        for name, found in measured["per_class"].items()
    ]  # fmt: skip
    return f"""On {measured["rows"]:,} rows of a labelled test set:

{_table(("", "accuracy", "macro-F1", "calibration error"), overall)}

{_table(("student", "precision", "recall", "F1", "rows"), by_label)}"""


def _teacher_figures(config: RunConfig, metrics: Mapping[str, Any] | None) -> str:
    """The teacher's labels against gold, where there is any."""
    teacher = (metrics or {}).get("teacher", {})
    places = {"corpus": "these rows, where they have gold", "test": "a test set beside them"}
    rows = [
        (place, f"{found['rows']:,}", *(f"{found[key]:.3f}" for key in _KEYS))
        for name, place in places.items()
        if (found := teacher.get(name))
    ]
    if not rows:
        return "The labels were compared with nobody's: there was no gold to measure them by."
    return "The teacher's labels against people's:\n\n" + _table(
        ("", "rows", "accuracy", "macro-F1", "calibration error"), rows
    )


_KEYS = ("accuracy", "macro_f1", "ece")


def _calibration_error(measured: Mapping[str, Any] | None) -> str:
    if not measured:
        return ""
    return f": on the test set the two lie {measured['ece']:.3f} apart on average"


def _model_source(config: RunConfig) -> str:
    return config.export.model_repo or "path/to/this/directory"


def _onnx_section(config: RunConfig, onnx: OnnxFacts) -> str:
    return f"""
Without torch, in this directory (`pip install onnxruntime tokenizers`):

```python
import json
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.enable_truncation({config.student.max_length})
tokenizer.enable_padding(pad_id={onnx.pad_id}, pad_token={onnx.pad_token!r})
session = onnxruntime.InferenceSession("onnx/model.onnx")
with open("config.json", encoding="utf-8") as file:
    names = json.load(file)["id2label"]

texts = ["a text", "another one"]
rows = tokenizer.encode_batch(texts)
columns = {{
    "input_ids": [row.ids for row in rows],
    "attention_mask": [row.attention_mask for row in rows],
    "token_type_ids": [row.type_ids for row in rows],
}}
feed = {{given.name: np.array(columns[given.name]) for given in session.get_inputs()}}
(logits,) = session.run(["logits"], feed)
labels = [names[str(index)] for index in logits.argmax(axis=1)]
```

`onnx/model.onnx` takes batches of any size. On {onnx.texts} texts its probabilities were those of the
weights to {onnx.difference:.0e}.
"""
