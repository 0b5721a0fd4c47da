"""Imports custom classes, named in the config as `package.module:Class`."""

import importlib
from typing import Any

from llkd.errors import ConfigError


def imported_class(path: str, setting: str) -> Any:
    """Import the class at `package.module:Class`.

    Raises:
        ConfigError: it cannot be imported; names the `setting` that refers to it.
    """
    module_name, _, class_name = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # a user's module may raise anything when imported
        raise ConfigError(
            f"{setting}: cannot import {path}: {error or type(error).__name__}.",
            "Correct the path, or add the module's directory to PYTHONPATH (on every node of a "
            "cluster).",
        ) from error
