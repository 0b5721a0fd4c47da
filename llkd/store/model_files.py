"""Identifies and checks models: local directories, or hub names with a revision.

Weights are loaded from safetensors only: loading a pickle can run arbitrary code.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from llkd.errors import ConfigError

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken*")
"""Every directory with a tokenizer holds at least one of these."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def model_identity(
    model: str, revision: str | None, setting: str, config_name: str = "config.json"
) -> str:
    """A string that changes when the model or adapter does.

    For a directory: a hash of its JSON files and of the names and sizes of its other files, whose
    content is too large to hash. For a hub name: the name and the requested revision.

    Args:
        model: directory or hub name.
        revision: of a hub name.
        setting: that names the model, for errors.
        config_name: the configuration file that the directory must hold; an adapter has its own.

    Raises:
        ConfigError: `model` is a path that does not exist, or holds no `config_name`.
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


def require_model(model: str, setting: str) -> None:
    """Check that a directory holds a complete model. Hub names are not checked.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    model_identity(model, None, setting)  # raises if the directory does not exist
    directory = Path(model)
    if not directory.is_dir():
        return
    if not any(found for pattern in TOKENIZER_FILES for found in directory.glob(pattern)):
        raise ConfigError(
            f"{setting}: {model} holds no tokenizer, such as a tokenizer.json",
            f"Write it with tokenizer.save_pretrained({model!r}).",
        )
    require_weights(model, setting)


def require_weights(model: str, setting: str) -> None:
    """Check that a directory holds complete weights as safetensors. Hub names are not checked.

    Raises:
        ConfigError: a file is missing, damaged or pickled.
    """
    directory = Path(model)
    if not directory.is_dir():
        return
    files = _weight_files(directory, setting)
    if not files:
        pickled = sorted(found.name for pattern in PICKLED for found in directory.glob(pattern))
        if not pickled:
            raise ConfigError(f"{setting}: {model} holds no weights (*.safetensors)")
        raise ConfigError(
            f"{setting}: {model} holds its weights only as {pickled[0]}, a pickle that can run code "
            "when it is loaded",
            f"If you trust the file, convert it: AutoModel.from_pretrained({model!r}).save_pretrained({model!r}) "
            "writes safetensors.",
        )
    for path in files:
        _require_complete(path, setting)


def _weight_files(directory: Path, setting: str) -> Iterable[Path]:
    """All safetensors files of a directory, and those that its index lists."""
    found = set(directory.glob("*.safetensors"))
    for index in directory.glob("*.safetensors.index.json"):
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"{setting}: {index} is damaged: {error}") from error
        found |= {directory / str(name) for name in names}
    return sorted(found)


def _require_complete(path: Path, setting: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # reads the header and checks the length
            pass
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{setting}: {path} is missing or damaged ({error})",
            "Copy or download it again.",
        ) from error
