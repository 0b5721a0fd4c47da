"""What a model is, for fingerprints and for messages: a directory, or a hub name and revision."""

import hashlib
from pathlib import Path

from llkd.errors import ConfigError


def model_identity(
    model: str, revision: str | None, setting: str, config_name: str = "config.json"
) -> str:
    """A string that changes when the model does, or the adapter whose `config_name` is its own.

    For a directory: a hash of its JSON files and of the names and sizes of its other files (their
    content is too large to hash). For a hub name: the name and the revision asked for.

    Raises:
        ConfigError: `model` reads like a path, and nothing is there.
    """
    directory = Path(model)
    if not directory.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise ConfigError(f"{setting}: the model directory {model} does not exist")
        return f"{model}@{revision or 'main'}"
    if not (directory / config_name).is_file():
        raise ConfigError(f"{setting}: {model} holds no {config_name}")
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.iterdir() if p.is_file()):
        digest.update(f"{path.name}:{path.stat().st_size};".encode())
        if path.suffix == ".json":
            digest.update(path.read_bytes())
    return f"{directory.name}#{digest.hexdigest()[:16]}"
