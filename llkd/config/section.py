"""The base that all sections share: their types, and the checks that several of them need."""

import os
import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

DATASETS_PREFIX = "datasets:"
"""Of the name of a data set that the `datasets` library loads."""

SECRETS = (
    "key", "token", "secret", "password", "passwd", "passphrase", "authorization", "signature",
)  # fmt: skip
"""Suffixes of argument names that mark a secret."""

_NO_SECRETS = re.compile(
    r"(.*[_-])?((pad|eos|bos|unk|sep|cls|mask|image|audio|video|start|end|stop|placeholder|from)"
    r"[_-]?token|(text|label|id|image|sort|primary|partition|group)[_-]?key)"
)
"""Names with such a suffix that are not secrets: a tokenizer's special tokens, columns."""

_PASSWORD = re.compile(r"://[^/@\s]*:(?!\d+(/|$))[^@\s]*@|(?i:https?)://[^/?#@\s]+@")
"""`user:password@` in a URI, but not a port; for HTTP also `token@`, which elsewhere may be a user
or a container."""

_PARAMETER = re.compile(r"[?&;]([^=&;?]+)=[^&;]")
"""The name of a parameter in a URI's query string."""


def check_no_secrets(settings: Mapping[str, Any], section: str = "") -> None:
    """Reject secrets in settings, at any depth: settings are written to run.yaml and displayed.

    Args:
        settings: values by name; strings may be URIs.
        section: the section of the settings, for the message.

    Raises:
        ValueError: a setting holds a secret; names the setting but not its value.
    """
    for name, value in settings.items():
        _check_value(value, f"{section}.{name}" if section else name, _names_secret(name))


def _check_value(value: Any, where: str, secret: bool) -> None:
    """`check_no_secrets` for one setting; `secret` if its name marks a secret."""
    if isinstance(value, Mapping):
        check_no_secrets(value, where)
    elif isinstance(value, list | tuple):
        for each in value:
            if _is_pair(each):
                name, of_name = each
                _check_value(name, where, secret)
                _check_value(of_name, f"{where}.{name}", secret or _names_secret(name))
            else:
                _check_value(each, where, secret)
    elif isinstance(value, str) and value:
        if secret:
            raise ValueError(
                f"{where} would be written to run.yaml. Set it in the environment instead: "
                "api_key_env names the variable of an endpoint's key, and libraries read "
                "HF_TOKEN, AWS_ACCESS_KEY_ID and similar variables themselves"
            )
        if _PASSWORD.search(value) or any(map(_names_secret, _PARAMETER.findall(value))):
            raise ValueError(
                f"{where} holds a password or a key, which would be written to run.yaml. Set "
                "it in the environment instead, for example as AWS_SECRET_ACCESS_KEY or "
                "MLFLOW_TRACKING_TOKEN"
            )


def _is_pair(value: Any) -> bool:
    """Whether it looks like a [name, value] pair, a common form for headers."""
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str)


def _names_secret(name: str) -> bool:
    name = name.lower()
    return name == "sig" or (name.endswith(SECRETS) and not _NO_SECRETS.fullmatch(name))


def control_characters(text: str) -> bool:
    """Whether a text contains line breaks, NUL or other control characters."""
    return any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in text)


def absolute_path(path: str) -> str:
    """A local path made absolute, because Ray workers run in other working directories; a URI or the
    name of a data set as it is."""
    remote = "://" in path or path.startswith(DATASETS_PREFIX)
    return path if remote else os.path.abspath(os.path.expanduser(path))


def _absolute_if_local(model: str) -> str:
    return absolute_path(model) if os.path.isdir(model) else model


def _names_directory(path: str) -> str:
    if not path.strip("/ "):
        raise ValueError(f"must name a directory, not {path!r}")
    if control_characters(path):
        raise ValueError("must not contain a line break, NUL or another control character")
    return path


LocalPath = Annotated[str, AfterValidator(absolute_path)]
"""A file, glob, directory, URI or `datasets:NAME`."""
Paths = LocalPath | Annotated[tuple[LocalPath, ...], Field(min_length=1)]
Directory = Annotated[str, AfterValidator(_names_directory), AfterValidator(absolute_path)]
"""An output directory or URI."""
ModelPath = Annotated[str, AfterValidator(_absolute_if_local)]
"""A model directory or hub name."""
ModelName = Annotated[str, Field(min_length=1), AfterValidator(_absolute_if_local)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Replicas = tuple[Positive, Positive]


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, strict=False,
        allow_inf_nan=False,
    )  # fmt: skip


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section class in an annotation, which may be optional or a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(section_in, get_args(annotation))), None)


def check_replicas(replicas: tuple[int, int]) -> None:
    """Check that replicas is [minimum, maximum], in that order."""
    low, high = replicas
    if low > high:
        raise ValueError(f"replicas must be [minimum, maximum], not [{low}, {high}]")
