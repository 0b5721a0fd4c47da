"""Reading a config: YAML, overrides, what is wrong in it, and paths that hold on other nodes."""

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from llkd.config import RunConfig, StudentConfig, TaskConfig, TeacherConfig
from llkd.config_sources import PredictConfig, SourceConfig
from llkd.config_words import explained
from llkd.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice: of two settings, YAML takes the last in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are all different."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                problem = "the name of a setting cannot be a list or a mapping"
            elif key in seen:
                problem = f"{key!r} is given twice"
            else:
                seen.add(key)
                continue
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        return super().construct_mapping(node, deep)


def load_config(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML config and apply `dotted.key=value` overrides, whose values are YAML.

    Raises:
        ConfigError: the file cannot be read, or a setting is wrong; all that is wrong is named.
    """
    try:
        raw = _read_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the config {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, not {type(raw).__name__}")
    for override in overrides:
        _apply_override(raw, override)
    return parse_config(raw, source=path)


def _read_yaml(text: str) -> Any:
    """What a text says.

    Raises:
        yaml.YAMLError: it is no YAML, or gives a setting twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise yaml.YAMLError("its brackets are nested too deep") from error


def parse_config(raw: Mapping[str, Any], source: str = "config") -> RunConfig:
    """Check a mapping of settings. `source` is named in the error.

    Raises:
        ConfigError: naming every wrong setting, its value, and the nearest known key.
    """
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        problems = "\n".join(f"  {line}" for line in explained(RunConfig, error))
        raise ConfigError(f"{source} has wrong settings:\n{problems}") from None


def changed(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The same config but for `dotted.key=value` overrides.

    Raises:
        ConfigError: a setting is wrong.
    """
    raw = config.model_dump(mode="json")
    for override in overrides:
        _apply_override(raw, override)
    return parse_config(raw, source=", ".join(overrides))


def absolute_paths(config: RunConfig) -> RunConfig:
    """The same config with its local paths made absolute: Ray's workers run in other folders."""

    def source(section: SourceConfig) -> SourceConfig:
        return section.model_copy(update={"path": _absolute_paths(section.path)})

    def student(section: StudentConfig) -> StudentConfig:
        return section.model_copy(update={"model": _absolute_folder(section.model)})

    def teacher(section: TeacherConfig) -> TeacherConfig:
        table = section.engine == "table"
        return section.model_copy(
            update={
                "model": _absolute(section.model) if table else _absolute_folder(section.model),
                "lora": section.lora and _absolute_folder(section.lora),
            }
        )

    def task(section: TaskConfig) -> TaskConfig:
        if section.examples_from is None:
            return section
        found = section.examples_from
        paths = {
            "path": _absolute_paths(found.path),
            "embedder": found.embedder and _absolute_folder(found.embedder),
        }
        return section.model_copy(update={"examples_from": found.model_copy(update=paths)})

    def predict(section: PredictConfig) -> PredictConfig:
        return section.model_copy(update={"path": section.path and _absolute_paths(section.path)})

    return config.model_copy(
        update={
            "run_dir": _absolute(config.run_dir),
            "task": task(config.task),
            "corpus": source(config.corpus),
            "test": config.test and source(config.test),
            "validation": config.validation and source(config.validation),
            "teacher": teacher(config.teacher),
            "teachers": tuple(teacher(one) for one in config.teachers),
            "student": student(config.student),
            "predict": predict(config.predict),
        }
    )


def portable_path(path: str) -> str:
    """A path as fingerprints keep it: relative to the working directory where it lies inside."""
    here = os.getcwd() + os.sep
    return path.removeprefix(here)


def _absolute(path: str) -> str:
    remote = "://" in path or path.startswith("datasets:")
    return path if remote else os.path.abspath(os.path.expanduser(path))


def _absolute_paths(path: str | tuple[str, ...]) -> str | tuple[str, ...]:
    return _absolute(path) if isinstance(path, str) else tuple(map(_absolute, path))


def _absolute_folder(name: str) -> str:
    """A model is a folder or a name at the hub."""
    return _absolute(name) if Path(name).is_dir() else name


def dump_config(config: RunConfig) -> str:
    """The config as YAML, every default written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"An override reads dotted.key=value, not {override!r}")
    try:
        value = _read_yaml(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise ConfigError(f"The value of {key} is not valid YAML: {problem}: {text!r}") from error
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
