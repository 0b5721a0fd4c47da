"""The sections that say where rows of text come from, and what all sections share.

The docstring under each field is its documentation.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

PREDICT = "predict"
"""Section and folder of the rows that only the finished student is asked about."""

NAME_BYTES = 200
"""A folder's name can be no longer: file systems take 255, and files beside it add endings."""

SECRETS = (
    "key", "token", "secret", "password", "passwd", "passphrase", "authorization", "signature",
)  # fmt: skip
"""How the names of arguments end that hold a secret."""

_NO_SECRETS = re.compile(
    r"(.*[_-])?((pad|eos|bos|unk|sep|cls|mask|image|audio|video|start|end|stop|placeholder|from)"
    r"[_-]?token|(text|label|id|image|sort|primary|partition|group)[_-]?key)"
)
"""Names that end so and hold none: special tokens of a tokenizer, columns."""

_PASSWORD = re.compile(r"://[^/@\s]*:(?!\d+(/|$))[^@\s]*@|(?i:https?)://[^/?#@\s]+@")
"""`user:password@` in a URI; a port is none. `token@` too, where it is no user or container."""

_PARAMETER = re.compile(r"[?&;]([^=&;?]+)=[^&;]")
"""The name of a parameter in the query of a URI."""


def check_no_secrets(settings: Mapping[str, Any], section: str = "") -> None:
    """See that settings hold no secret, at any depth: they are written into run.yaml, and shown.

    Args:
        settings: by name; texts in them may be URIs.
        section: whose settings they are, for the message.

    Raises:
        ValueError: naming the setting, and not what it holds.
    """
    for name, value in settings.items():
        _check_value(value, f"{section}.{name}" if section else name, _names_secret(name))


def _check_value(value: Any, where: str, secret: bool) -> None:
    """The same of one setting, which may have a name that secrets have."""
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
                f"{where} would be written into run.yaml. Put it into the environment instead: "
                "api_key_env names the variable of an endpoint's key, and the libraries read "
                "HF_TOKEN, AWS_ACCESS_KEY_ID and the like by themselves"
            )
        if _PASSWORD.search(value) or any(map(_names_secret, _PARAMETER.findall(value))):
            raise ValueError(
                f"{where} holds a password or a key, which would be written into run.yaml. Put "
                "it into the environment instead, as AWS_SECRET_ACCESS_KEY or "
                "MLFLOW_TRACKING_TOKEN"
            )


def _is_pair(value: Any) -> bool:
    """Whether it may be a [name, value], as headers are often given."""
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str)


def _names_secret(name: str) -> bool:
    name = name.lower()
    return name == "sig" or (name.endswith(SECRETS) and not _NO_SECRETS.fullmatch(name))


def control_characters(text: str) -> bool:
    """Whether a text holds line breaks, NUL or what else is not written."""
    return any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in text)


Paths = str | Annotated[tuple[str, ...], Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
ModelName = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(ge=1)]
Replicas = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, strict=False,
        allow_inf_nan=False,
    )  # fmt: skip


def section_of(dataset: str) -> str:
    """The section of the config that says where a data set comes from."""
    return dataset.partition("/")[0]


def check_replicas(replicas: tuple[int, int]) -> None:
    """See that [fewest, most] are in that order."""
    low, high = replicas
    if low > high:
        raise ValueError(f"replicas must be [fewest, most], not [{low}, {high}]")


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(
            "must be a plain folder name: letters, digits, `_`, `-` and dots, no dot in front"
        )
    if len(name.encode()) > NAME_BYTES:
        raise ValueError(f"must have {NAME_BYTES} bytes at most")
    return name


def _name_of(path: str) -> str:
    """A folder name from a path: its last part that is no pattern, without endings; may be empty."""
    parts = [
        part for part in path.removeprefix("datasets:").split("/") if not set(part) & set("*?[")
    ]
    last = next((part for part in reversed(parts) if part), "")
    name = re.sub(r"[^\w-]+", "-", last.partition(".")[0]).strip("-")
    return name if len(name.encode()) <= NAME_BYTES else ""


class _AnySource(Section):
    """Rows of text, if a path is given."""

    path: Paths | None = None
    """Where they are, in any form that `corpus.path` takes."""
    text_column: str = "text"
    """The column that holds the text."""
    label_column: str | None = None
    """The column that holds gold labels; used only to measure, never to train."""
    id_column: str | None = None
    """A column of the caller's own identifiers, carried through to every result."""
    dataset_args: dict[str, Any] = Field(default_factory=dict)
    """For `datasets:NAME`: arguments of `datasets.load_dataset`, such as `split` or `name`."""

    @model_validator(mode="after")
    def _check_secrets(self) -> Self:
        check_no_secrets({"path": self.path, "dataset_args": self.dataset_args})
        return self


class SourceConfig(_AnySource):
    """Where rows of text come from."""

    path: Paths
    """A file, a glob, a list of them, a directory, or a URI (s3://, gs://), of Parquet, JSON lines
    or CSV; or `datasets:NAME`, which the `datasets` library loads."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The path setting as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path


class CorpusConfig(SourceConfig):
    """The unlabelled corpus."""

    rows_per_shard: Annotated[int, Field(ge=1, le=2**24)] = 8192
    """Rows in a shard: the unit of work, of recovery and of memory."""


class TestConfig(SourceConfig):
    """A labelled test set: teacher and student are measured on it."""

    __test__ = False  # not a test case, whatever its name makes pytest think
    label_column: str = "label"
    """The column that holds the gold labels."""


class PredictConfig(_AnySource):
    """What `jobs/predict.py` does: the finished student over a whole corpus.

    `path` and what says how to read it are those of any source; without a path the run's own
    corpus is predicted. A `label_column` is used to measure the student there.
    """

    rows_per_shard: Annotated[int, Field(ge=1, le=2**24)] = 8192
    """Rows in a shard of `path`."""
    name: Annotated[str, AfterValidator(_folder_name)] | None = None
    """The folder of these predictions in `<run_dir>/predictions`. By default the last part of the
    path without its ending; `corpus` for the run's own corpus."""
    probabilities: bool = False
    """Write the whole distribution over the labels too."""
    replicas: Replicas = (1, 1)
    """Fewest and most actors with a student each; the pool grows while shards wait."""
    resources: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """Ray resources of one replica. By default {GPU: 1} where the cluster has GPUs, else the CPUs
    of one node divided by the largest number of replicas."""

    @property
    def source(self) -> CorpusConfig | None:
        """Where the rows come from; None for the run's own corpus."""
        if self.path is None:
            return None
        return CorpusConfig(**{name: getattr(self, name) for name in CorpusConfig.model_fields})

    @property
    def folder(self) -> str:
        """The name of the folder, given or derived."""
        if self.name is not None:
            return self.name
        source = self.source
        return "corpus" if source is None else _name_of(source.paths[0])

    @property
    def dataset(self) -> str:
        """The data set that is predicted: `corpus` or `predict/NAME`."""
        return "corpus" if self.path is None else f"{PREDICT}/{self.folder}"

    @model_validator(mode="after")
    def _check(self) -> "PredictConfig":
        check_replicas(self.replicas)
        if self.path is None:
            for name in CorpusConfig.model_fields:
                if getattr(self, name) != type(self).model_fields[name].get_default(
                    call_default_factory=True
                ):
                    raise ValueError(f"{name} says how to read path, which is not given")
        elif not self.folder:
            raise ValueError(f"no folder name can be made of path {self.path!r}; give name")
        elif self.folder == "corpus":
            raise ValueError(
                "the folder name 'corpus' is kept for the run's own corpus; give another name"
            )
        return self
