"""Loads a config: YAML, overrides, validation, and paths that are valid on every node."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from llkd.config.explain import explained
from llkd.config.run import RunConfig
from llkd.errors import ConfigError, StorageError
from llkd.store.folder import Folder

LONGEST_INTEGER = 63
"""Largest integer that a config may hold, in bits."""


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys, of which YAML silently takes the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Compose a mapping node whose keys are all distinct."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "the name of a setting cannot be a list or a mapping"
            elif (key.tag, key.value) in seen:
                problem = f"{key.value!r} is given twice"
            else:
                seen.add((key.tag, key.value))
                continue
            raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
        return node


class _Dumper(yaml.SafeDumper):
    """Escapes the Unicode line breaks that YAML would normalise when it reads them back."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = '"' if re.search("[\x85\u2028\u2029]", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _text)


def _read_yaml(text: str, what: str) -> Any:
    """Parse YAML; `what` names the text in errors."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise ConfigError(f"{what} is not valid YAML: it is nested too deeply") from error
    except Exception as error:  # not only YAMLError: 2024-02-30 and !!bool x raise others
        raise ConfigError(f"{what} is not valid YAML: {error}") from error


def load_config(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML config and apply `dotted.key=value` overrides, whose values are YAML.

    Args:
        path: the path or URI of the file.
        overrides: settings that replace those in the file.

    Raises:
        ConfigError: the file cannot be read, or settings are wrong; names every wrong setting.
    """
    folder, _, name = path.rpartition("/")
    try:
        content = Folder(folder).read_bytes(name) if "://" in path else Path(path).read_bytes()
        text = content.decode()
    except (OSError, ValueError, StorageError) as error:
        raise ConfigError(f"Cannot read the config {path}: {error}") from error
    raw = _read_yaml(text, path)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, not {type(raw).__name__}")
    for override in overrides:
        _apply_override(raw, override)
    return parse_config(raw, source=path)


def parse_config(raw: Mapping[str, Any], source: str = "config") -> RunConfig:
    """Validate a mapping of settings; errors name `source`.

    Raises:
        ConfigError: settings are wrong; names each with its value, or the closest known key.
    """
    problems = list(_not_plain(raw, []))
    if not problems:
        try:
            return RunConfig.model_validate(raw)
        except ValidationError as error:
            problems = list(explained(RunConfig, error))
    lines = "\n".join(f"  {problem}" for problem in problems)
    raise ConfigError(f"{source} has wrong settings:\n{lines}")


def _not_plain(value: Any, keys: list[str], above: tuple[int, ...] = ()) -> Iterator[str]:
    """The values that run.yaml cannot represent: text that is not valid UTF-8, non-finite numbers,
    other types such as dates, and cyclic references.

    Args:
        value: a setting or a section.
        keys: its location.
        above: the ids of the enclosing sections.
    """
    where = ".".join(keys) or "config"
    if id(value) in above:
        yield f"{where}: contains itself"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(key, str):
                yield from _not_plain(key, [*keys, repr(key)])
                yield from _not_plain(inner, [*keys, key], (*above, id(value)))
            else:
                yield f"{where}: {key!r} is not text; YAML needs quotes around it"
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _not_plain(inner, [*keys, str(number)], (*above, id(value)))
    elif isinstance(value, str):
        if not re.fullmatch("[^\0\ud800-\udfff]*", value):
            yield f"{where}: contains an invalid character, such as NUL ({value!r})"
    elif isinstance(value, int):
        if value.bit_length() > LONGEST_INTEGER:
            yield f"{where}: must be an integer of at most {LONGEST_INTEGER} bits"
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield f"{where}: must be a finite number, not {value}"
    elif value is not None:
        kind = type(value).__name__
        yield f"{where}: must be text or a number, not a {kind}; put quotes around it to make it text"


def changed(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """A copy of the config with `dotted.key=value` overrides applied.

    Raises:
        ConfigError: a setting is wrong.
    """
    raw = config.model_dump(mode="json")
    for override in overrides:
        _apply_override(raw, override)
    return parse_config(raw, source=", ".join(overrides))


def dump_config(config: RunConfig) -> str:
    """The config as YAML, including every default."""
    raw = config.model_dump(mode="json")
    return yaml.dump(raw, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"An override must have the form dotted.key=value, not {override!r}")
    value = _read_yaml(text, f"The value of {key}, {text!r},")
    *parents, last = key.split(".")
    section = raw
    for parent in parents:
        child = section.get(parent)
        if child is None:
            child = section[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"Cannot set {key}: {parent} is not a section but {child!r}")
        section = child
    section[last] = value
