"""Classes of the user's own, named in the config as `package.module:Class`."""

import importlib
from typing import Any

from llkd.errors import ConfigError


def imported_class(path: str, setting: str) -> Any:
    """The class at `package.module:Class`, which Python has to find where LLKD runs.

    Raises:
        ConfigError: there is none; `setting` is what named it.
    """
    module_name, _, class_name = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # whatever a module of the user's does when it is imported
        raise ConfigError(
            f"{setting}: cannot import {path}: {error or type(error).__name__}.",
            "Correct it, or name its folder in PYTHONPATH (on a cluster: see that all "
            "nodes have it).",
        ) from error
