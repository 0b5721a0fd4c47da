"""What the cards say of a run, in words and tables of Markdown.

What a config or a model brings is escaped: it is shown as it is.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llkd.config.run import RunConfig, TeacherConfig
from llkd.ingest.sources import DATASETS_PREFIX
from llkd.store.schema import RunLayout

PAPER = "[arXiv 2411.08028](https://arxiv.org/abs/2411.08028)"


@dataclass(frozen=True)
class OnnxFacts:
    """What the student's card tells of its ONNX form."""

    texts: int
    """How many it was checked on."""
    difference: float
    """The largest between two probabilities, the student's own and the ONNX form's."""
    pad_id: int
    pad_token: str


def plain(text: Any) -> str:
    """Text on one line, that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~$!])", r"\\\1", " ".join(str(text).split()))


def table(header: tuple[str, ...], rows: Any) -> str:
    """A table of Markdown; its cells are to be escaped already."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def labels_table(config: RunConfig) -> str:
    """The labels, and what the teacher was told of each where it was."""
    labels = config.task.labels.items()
    if not any(text for _, text in labels):
        return table(("label",), [(plain(name),) for name, _ in labels])
    header = ("label", "what the teacher was told")
    return table(header, [(plain(name), plain(text or "")) for name, text in labels])


def student_name(config: RunConfig) -> str:
    """How the student is called: by its repository, or by the run."""
    repo = config.export.model_repo
    return repo.rpartition("/")[2] if repo else RunLayout(config.run_dir).name


def language(config: RunConfig) -> str | list[str] | None:
    """The language of the texts, as the hub wants it."""
    language = config.export.language
    return list(language) if isinstance(language, tuple) else language


def hub_name(model: str) -> str | None:
    """A model's name at the hub; None for a directory of this machine."""
    on_hub = not Path(model).is_dir() and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model)
    return model if on_hub else None


def linked(name: str) -> str:
    """A link to a repository of the hub."""
    return f"[{plain(name)}](https://huggingface.co/{name})"


def model_name(model: str) -> str:
    """A model as people know it: a link to the hub, or what the directory holds."""
    name = hub_name(model)
    if name is not None:
        return linked(name)
    try:
        kind = json.loads((Path(model) / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, KeyError):
        return f"{plain(Path(model).name)} (a local directory)"
    return f"{plain(Path(model).name)} (a local directory that holds a {plain(kind)} model)"


def teacher_name(config: RunConfig) -> str:
    """The teacher, or all of several."""
    return ", ".join(_one_teacher(teacher) for teacher in config.teachers or (config.teacher,))


def _one_teacher(teacher: TeacherConfig) -> str:
    if teacher.engine == "table":
        return "labels made elsewhere"
    if teacher.engine in ("vllm", "transformers"):
        return model_name(teacher.model)
    return plain(Path(teacher.model).name)


def _calibration(config: RunConfig) -> str:
    kinds = sorted({teacher.calibration for teacher in config.teachers or (config.teacher,)})
    given = ", with the labels' shares given" if config.teacher.prior else ""
    return f"calibration `{'`, `'.join(kinds)}`{given}"


def labelled_elsewhere(config: RunConfig) -> bool:
    """Whether labels are of engines of which LLKD knows nothing: a table, or one of the user's."""
    return any(t.engine == "table" or ":" in t.engine for t in config.teachers or (config.teacher,))


def how_labelled(config: RunConfig) -> str:
    """How the labels came about."""
    teachers, kinds = config.teachers or (config.teacher,), _calibration(config)
    if labelled_elsewhere(config):
        return f"Labels were taken as they were made elsewhere ({kinds})."
    most = max(teacher.max_text_tokens for teacher in teachers)
    units = {"characters" if t.engine == "openai" else "tokens" for t in teachers}
    cut = f"; the teacher saw at most {most} tokens of a text" if units == {"tokens"} else ""
    return f"Its log-probability of every label was read ({kinds}){cut}."


def what_was_chosen(config: RunConfig) -> str:
    """The rows of an epoch."""
    policy = config.selection.policy
    if policy == "llkd":
        return f"rows of which the teacher was confident and the student uncertain, after {PAPER}"
    if policy == "all":
        return "all rows"
    return f"rows that the selection policy `{policy}` chose"


def human_labels(config: RunConfig) -> str:
    """What people's labels were used for."""
    if labelled_elsewhere(config):
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


def eval_results(config: RunConfig, measured: Mapping[str, Any]) -> list[Any]:
    """Figures on the test set as the hub reads them from a card."""
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


def figures_of_both(config: RunConfig, metrics: Mapping[str, Any] | None) -> str:
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
            plain(name), *(f"{found[key]:.3f}" for key in ("precision", "recall", "f1")),
            f"{found['support']:,}",
        )
        for name, found in measured["per_class"].items()
    ]  # fmt: skip
    return f"""On {measured["rows"]:,} rows of a labelled test set:

{table(("", "accuracy", "macro-F1", "calibration error"), overall)}

{table(("student", "precision", "recall", "F1", "rows"), by_label)}"""


def figures_of_the_teacher(config: RunConfig, metrics: Mapping[str, Any] | None) -> str:
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
    return "The teacher's labels against people's:\n\n" + table(
        ("", "rows", "accuracy", "macro-F1", "calibration error"), rows
    )


_KEYS = ("accuracy", "macro_f1", "ece")


def calibration_error(measured: Mapping[str, Any] | None) -> str:
    """How far probability and accuracy lie apart, as the end of a sentence; empty if not known."""
    if not measured:
        return ""
    return f": on the test set the two lie {measured['ece']:.3f} apart on average"


def model_source(config: RunConfig) -> str:
    """What a reader of the card loads the student by."""
    return config.export.model_repo or "path/to/this/directory"


def onnx_section(config: RunConfig, onnx: OnnxFacts) -> str:
    """How to serve the student without torch."""
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
