"""Generates the settings reference from the config's docstrings; `make docs` writes docs/settings.md.

python -m llkd.config.reference > docs/settings.md
"""

import json
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from llkd.config.run import RunConfig
from llkd.config.section import section_in

HEAD = """# Settings

A config is a YAML file. `jobs/run.py CONFIG.yaml [dotted.key=value ...]` overrides its settings; the
values are YAML. Settings are validated before anything runs: an unknown name is an error that suggests
the closest known one. `<run_dir>/run.yaml` records all settings of a run, including defaults.

`make docs` generates this page from the docstrings in `llkd/config/`; do not edit it.

"""

EXAMPLE = """run_dir: runs/tickets
task:
  instruction: Classify the customer's message.
  labels:
    billing: invoices, charges and refunds
    delivery: parcels that are late, lost or damaged
    other: null
corpus: {path: data/messages/*.parquet, text_column: body}
test: {path: data/labelled.csv, text_column: body, label_column: label}
teacher: {model: Qwen/Qwen2.5-7B-Instruct, replicas: [1, 4]}
student: {model: answerdotai/ModernBERT-base}
selection: {policy: llkd}
"""
"""A test validates it."""

Setting = tuple[str, FieldInfo]
"""(dotted key, field)."""


def page() -> str:
    """The whole page, in Markdown."""
    parts = [HEAD, f"```yaml\n{EXAMPLE}```\n"]
    for key, about, settings in sections():
        title = f"`{key}`" if key else "The run"
        parts += [f"\n## {title}\n\n{_prose(about)}\n\n", _table(settings)]
    return "".join(parts)


def sections() -> Iterator[tuple[str, str, list[Setting]]]:
    """(dotted key, description, its own settings) of each section, the run itself first."""
    yield from _sections("", RunConfig, "The settings outside any section.")


def _sections(
    key: str, section: type[BaseModel], about: str
) -> Iterator[tuple[str, str, list[Setting]]]:
    own: list[Setting] = []
    below: list[tuple[str, type[BaseModel], str]] = []
    classes: set[type[BaseModel]] = set()
    for name, field in section.model_fields.items():
        if field.exclude:
            continue
        full = f"{key}.{name}" if key else name
        inner = section_in(field.annotation)
        # Optional sections and lists of sections document themselves in their field's docstring.
        if inner is None or field.description:
            own.append((full, field))
        if inner is not None and full != "teachers":
            # When a class is used twice, the second section's own field docstring describes it.
            said = field.description if inner in classes else inner.__doc__
            below.append((f"{full}[]" if _is_list(field.annotation) else full, inner, said or ""))
            classes.add(inner)
    yield key, about, own
    for entry in below:
        yield from _sections(*entry)


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple


def _table(settings: Sequence[Setting]) -> str:
    lines = ["| setting | type | default | |\n|---|---|---|---|\n"]
    for key, field in settings:
        kind = type_name(field.annotation, field.metadata)
        cells = (f"`{key}`", kind, _default(field), _prose(field.description))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(lines)


def _prose(docstring: str | None) -> str:
    return " ".join((docstring or "").split())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see its section"
    return f"`{json.dumps(value)}`"


_PLAIN = {
    str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything",
    type(None): "null",
}  # fmt: skip


def type_name(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in plain English.

    Args:
        annotation: the annotation of the field.
        metadata: its constraints, if they were stripped from the annotation.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(arguments[0], arguments[1:])
    if origin is Literal:
        return _either([f"`{value}`" for value in arguments])
    if origin in (Union, types.UnionType):
        return _either([type_name(each) for each in arguments])
    if origin is tuple and arguments[-1:] == (...,):
        of = type_name(arguments[0])
        return f"list of {of}s" if of == "section" else f"list of {of}"
    if origin is tuple:
        return f"[{', '.join(map(type_name, arguments))}]"
    if origin is dict:
        of = type_name(arguments[1])
        return "mapping" if of == "anything" else f"mapping of names to {of}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return _PLAIN.get(annotation, str(annotation)) + _bounds(metadata)


_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _bounds(metadata: Sequence[Any]) -> str:
    """The lower and upper bounds, if any."""
    found = []
    for one in metadata:
        for bound in getattr(one, "metadata", [one]):
            for name, sign in _SIGNS.items():
                value = getattr(bound, name, None)
                if value is not None:
                    found.append(
                        f"{sign} {value:,}" if isinstance(value, int) else f"{sign} {value:g}"
                    )
    return f" {', '.join(found)}" if found else ""


def _either(words: Sequence[str]) -> str:
    words = list(dict.fromkeys(words))
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


if __name__ == "__main__":
    sys.stdout.write(page())
