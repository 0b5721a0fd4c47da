"""What a model is, for fingerprints and for messages: a directory, or a hub name and revision.

Weights are read from safetensors alone: what PyTorch pickles can run code when it is loaded.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from llkd.errors import ConfigError

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken*")
"""One of these is in every directory that holds a tokenizer."""
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


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


def require_model(model: str, setting: str) -> None:
    """See that a directory holds all that is read of a model later. A hub name is taken on trust.

    Raises:
        ConfigError: naming what is missing or damaged.
    """
    model_identity(model, None, setting)  # sees whether there is a directory
    directory = Path(model)
    if not directory.is_dir():
        return
    if not any(found for pattern in TOKENIZER_FILES for found in directory.glob(pattern)):
        raise ConfigError(
            f"{setting}: {model} holds no tokenizer, such as a tokenizer.json",
            "Save it there with tokenizer.save_pretrained.",
        )
    require_weights(model, setting)


def require_weights(model: str, setting: str) -> None:
    """See that a directory holds whole weights as safetensors. A hub name is taken on trust.

    Raises:
        ConfigError: naming the file that is missing, damaged or pickled.
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
            f"{setting}: {model} holds its weights as {pickled[0]} alone, which is "
            "pickled and can run code when it is loaded.",
            f"Convert it where you trust it: AutoModel.from_pretrained({model!r}).save_pretrained({model!r}) "
            "writes safetensors.",
        )
    for path in files:
        _require_whole(path, setting)


def _weight_files(directory: Path, setting: str) -> Iterable[Path]:
    """The files that an index names, or else those that are there."""
    found = set(directory.glob("*.safetensors"))
    for index in directory.glob("*.safetensors.index.json"):
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"{setting}: {index} is damaged: {error}") from error
        found |= {directory / str(name) for name in names}
    return sorted(found)


def _require_whole(path: Path, setting: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # reads the header alone, and compares the length
            pass
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{setting}: {path} is missing or damaged ({error})",
            "Copy or download it again.",
        ) from error
