"""The cards of the student and of the labelled rows, in the hub's format.

`huggingface_hub` writes the metadata and must read the same back. The text comes from `templates/`.
Cards show label names and descriptions, never texts of the corpus.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from llkd import __version__
from llkd.config.run import RunConfig, TeacherConfig
from llkd.config.section import DATASETS_PREFIX
from llkd.core.tally import Tally
from llkd.errors import ExportError
from llkd.store.manifest import Manifest
from llkd.store.schema import RunLayout

CARD = "README.md"
TAGS = ("knowledge-distillation", "pseudo-labels", "llkd")

_THOUSANDS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
_SIZES = ("n<1K", *(f"{low}<n<{high}" for low, high in pairwise(_THOUSANDS)), "n>1T")
"""The hub's size categories, by the number of digits of the row count beyond three."""


@dataclass(frozen=True)
class OnnxFacts:
    """Figures of the ONNX form in the student's card."""

    texts: int
    """Number of texts on which it was compared with the student."""
    difference: float
    """The largest difference between their probabilities."""
    pad_id: int
    pad_token: str


def model_card(
    config: RunConfig,
    distilled: Manifest,
    metrics: Mapping[str, Any] | None = None,
    onnx: OnnxFacts | None = None,
) -> str:
    """The student's card: metadata, training, quality, limits, use.

    Args:
        config: the run.
        distilled: the manifest of distillation.
        metrics: the content of metrics.json; None before the student is measured.
        onnx: figures of the ONNX form; None without one.

    Raises:
        ExportError: the hub's library reads the card differently.
    """
    from huggingface_hub import ModelCard, ModelCardData

    export = config.export
    measured = (metrics or {}).get("student", {}).get("test")
    data = ModelCardData(
        base_model=_hub_name(config.student.model),
        datasets=[export.dataset_repo] if export.dataset_repo else None,
        language=_language(config),
        license=export.license,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=[*TAGS, *(["onnx"] if onnx else [])],
        metrics=["accuracy", "f1"] if measured else None,
        model_name=_student_name(config) if measured else None,
        eval_results=_eval_results(config, measured) if measured else None,
    )
    text = _rendered(
        "model_card.md", config, metrics, name=_student_name(config),
        distilled=distilled.results, measured=measured, onnx=onnx,
    )  # fmt: skip
    return _checked(ModelCard, data, text)


def dataset_card(
    config: RunConfig, facts: Tally, features: Any, metrics: Mapping[str, Any] | None
) -> str:
    """The labelled rows' card, from which `datasets` reads their features.

    Args:
        config: the run.
        facts: counts of the rows, see `write_labelled_rows`.
        features: `datasets.Features` of the files.
        metrics: the content of metrics.json, if it exists.

    Raises:
        ExportError: the hub's library reads the card differently.
    """
    from datasets import DatasetInfo, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard, DatasetCardData

    elsewhere, rows = _labelled_elsewhere(config), int(facts["rows_c"].sum())
    name = f"{_student_name(config)}, labelled" + ("" if elsewhere else " by a language model")
    data = DatasetCardData(
        pretty_name=name,
        language=_language(config),
        license=config.export.license,
        annotations_creators=None if elsewhere else ["machine-generated"],
        task_categories=["text-classification"],
        size_categories=[_SIZES[min(max(len(str(rows)) - 3, 0), len(_SIZES) - 1)]],
        tags=list(TAGS),
    )
    arrow_bytes, file_bytes = int(facts["arrow_bytes"]), int(facts["file_bytes"])
    train = SplitInfo("train", num_bytes=arrow_bytes, num_examples=rows)
    info = DatasetInfo(
        features=features, splits=SplitDict({"train": train}), dataset_size=arrow_bytes,
        download_size=file_bytes,
    )  # fmt: skip
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    files = {"data_files": [{"split": "train", "path": "data/train-*"}]}
    MetadataConfigs({"default": files}).to_dataset_card_data(data)
    text = _rendered(
        "dataset_card.md", config, metrics, pretty_name=name, rows=rows, rows_c=facts["rows_c"],
        confidence_c=facts["confidence_c"], columns=list(features),
    )  # fmt: skip
    return _checked(DatasetCard, data, text)


def _rendered(
    template: str, config: RunConfig, metrics: Mapping[str, Any] | None, **facts: Any
) -> str:
    """The text of a card. Templates escape text from configs and models with `plain`."""
    environment = Environment(
        loader=PackageLoader("llkd.results", "templates"), trim_blocks=True, autoescape=False,
        keep_trailing_newline=True, undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "plain": _plain, "repr": repr, "hub_link": _hub_link, "model_link": _model_link
    }  # fmt: skip
    teachers = config.all_teachers
    return environment.get_template(template).render(
        config=config, teachers=teachers, teacher_metrics=(metrics or {}).get("teacher", {}),
        teacher=", ".join(_teacher_name(teacher) for teacher in teachers),
        labelled_elsewhere=_labelled_elsewhere(config), human_label_uses=_human_label_uses(config),
        version=__version__, **facts,
    )  # fmt: skip


def _checked(kind: Any, data: Any, text: str) -> str:
    """A card of metadata and text, verified by reading it with the hub's library."""
    text = f"\n{text}"
    content = f"---\n{data.to_yaml()}\n---\n{text}"
    try:
        read = kind(content)
        if read.data.to_dict() != data.to_dict() or read.text != text:
            raise ValueError("it reads a different card than the one written")
    except ValueError as error:
        raise ExportError(
            f"The hub's library cannot read the card: {error}.",
            "Rename the label with unusual characters, or change the section export.",
        ) from error
    return content


def _plain(text: Any) -> str:
    """Text on one line, escaped so that Markdown shows it unchanged."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~$!])", r"\\\1", " ".join(str(text).split()))


def _hub_link(name: str) -> str:
    """A link to a repository at the hub."""
    return f"[{_plain(name)}](https://huggingface.co/{name})"


def _hub_name(model: str) -> str | None:
    """A model's name at the hub; None for a local directory."""
    on_hub = not Path(model).is_dir() and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model)
    return model if on_hub else None


def _model_link(model: str) -> str:
    """A link to a model at the hub, or the description of a local directory."""
    if name := _hub_name(model):
        return _hub_link(name)
    local = f"{_plain(Path(model).name)} (a local directory"
    try:
        kind = json.loads((Path(model) / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, KeyError):
        return f"{local})"
    return f"{local} that holds a {_plain(kind)} model)"


def _teacher_name(teacher: TeacherConfig) -> str:
    if teacher.engine == "table":
        return "labels made elsewhere"
    if teacher.engine in ("vllm", "transformers"):
        return _model_link(teacher.model)
    return _plain(Path(teacher.model).name)


def _student_name(config: RunConfig) -> str:
    """The last part of the student's repository, or else of the run directory."""
    repo = config.export.model_repo
    return repo.rpartition("/")[2] if repo else RunLayout(config.run_dir).name


def _language(config: RunConfig) -> str | list[str] | None:
    """The language of the texts, in the hub's format."""
    language = config.export.language
    return list(language) if isinstance(language, tuple) else language


def _labelled_elsewhere(config: RunConfig) -> bool:
    """Whether the origin of the labels is unknown: a table, or a custom engine."""
    return any(t.engine == "table" or ":" in t.engine for t in config.all_teachers)


def _human_label_uses(config: RunConfig) -> list[str]:
    used = []
    if count := len(config.task.examples):
        used.append(f"{count} worked {'example' if count == 1 else 'examples'} in the prompt")
    if config.task.examples_from is not None:
        used.append("examples in the prompt, drawn from a labelled file")
    if any(t.calibration == "temperature" for t in config.all_teachers):
        used.append("the labelled rows that the calibration was fitted to")
    return used


def _eval_results(config: RunConfig, measured: Mapping[str, Any]) -> list[Any]:
    """Figures on the test set, in the hub's format."""
    from huggingface_hub import EvalResult

    assert config.test is not None
    path = config.test.paths[0]
    on_hub = path.startswith(DATASETS_PREFIX)
    name = path.removeprefix(DATASETS_PREFIX) if on_hub else "test set"
    shared: dict[str, Any] = {
        "task_type": "text-classification", "task_name": "Text classification",
        "dataset_type": name.replace(" ", "-"), "dataset_name": name,
        "dataset_split": config.test.dataset_args.get("split"),
    }  # fmt: skip
    accuracy, macro_f1 = round(measured["accuracy"], 4), round(measured["macro_f1"], 4)
    return [
        EvalResult(
            **shared, metric_type="accuracy", metric_name="Accuracy", metric_value=accuracy
        ),
        EvalResult(
            **shared, metric_type="f1", metric_name="Macro-F1", metric_value=macro_f1,
            metric_args={"average": "macro"},
        ),
    ]  # fmt: skip
