"""Lists the files of a source: expands its paths, directories and globs in a fixed order."""

import re
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from llkd.config.section import DATASETS_PREFIX
from llkd.config.sources import SourceConfig
from llkd.errors import DataError
from llkd.store.filesystems import filesystem

FORMATS = {"parquet": "parquet", "pq": "parquet", "jsonl": "jsonl", "ndjson": "jsonl",
           "json": "json", "csv": "csv"}  # fmt: skip
COMPRESSIONS = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}

UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""Errors of reading. ValueError is for names that are not UTF-8."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source; `format` is `parquet`, `jsonl`, `json` (an array or lines), `csv` or `datasets`."""

    uri: str
    format: str
    size: int
    """Bytes; 0 for a `datasets` data set."""


def list_files(source: SourceConfig, setting: str) -> list[SourceFile]:
    """The files of a source, sorted within each of its paths.

    Args:
        source: the source.
        setting: its section in the config, for errors.

    Raises:
        DataError: a path does not exist, has no data files, or has an unknown format.
    """
    files: list[SourceFile] = []
    for path in source.paths:
        if path.startswith(DATASETS_PREFIX):
            files.append(SourceFile(path, "datasets", 0))
            continue
        files.extend(_expand(path, setting))
    return list(dict.fromkeys(files))


def _expand(path: str, setting: str) -> list[SourceFile]:
    try:
        return _found(path, setting)
    except (*UNREADABLE, re.error) as error:
        raise DataError(f"{setting}.path: cannot search {path!r}: {error}") from error


_BEFORE_BUCKET = re.compile(r"\w+://([^/@]*@)?")
"""`s3://`; `gs://anonymous@` for a public bucket."""


def _found(path: str, setting: str) -> list[SourceFile]:
    first_wild = min((path.index(char) for char in "*?[" if char in path), default=None)
    base = path if first_wild is None else path[:first_wild].rpartition("/")[0]
    filesystem_, root = filesystem(base or ("/" if path.startswith("/") else "."))
    before = _BEFORE_BUCKET.match(base)  # pyarrow's paths omit it
    scheme = before.group() if before else ""
    info = filesystem_.get_file_info(root)
    if info.type == fs.FileType.NotFound:
        raise DataError(f"{setting}.path: {path} does not exist")
    if info.type == fs.FileType.File:
        return [SourceFile(scheme + root, _format_of(path, setting), info.size)]
    found = filesystem_.get_file_info(fs.FileSelector(root, recursive=True))
    pattern = None
    if first_wild is None:
        found = [f for f in found if _split_name(f.path)[0] in FORMATS]
    else:
        pattern = _glob_pattern(path[len(base) :].lstrip("/"))
        found = [f for f in found if pattern.fullmatch(f.path[len(root) :].lstrip("/"))]
    found = [
        f for f in found
        if f.type == fs.FileType.File and not f.base_name.startswith((".", "_"))
    ]  # fmt: skip
    if not found:
        kinds = "files" if pattern else "Parquet, JSON Lines or CSV files"
        raise DataError(f"{setting}.path: no {kinds} in {path}")
    return [
        SourceFile(scheme + f.path, _format_of(f.path, setting), f.size)
        for f in sorted(found, key=lambda f: f.path)
    ]


def _glob_pattern(glob: str) -> re.Pattern[str]:
    """A glob with the semantics of a shell: `*` and `?` match within a directory, `**/` any
    directories, `[...]` one of the characters, `[!...]` any other character."""
    parts = re.split(r"(\*\*/|\*|\?|\[!?[^]]+\])", glob)
    meaning = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(
            meaning.get(part, _one_of(part) if number % 2 else re.escape(part))
            for number, part in enumerate(parts)
        )
    )


def _one_of(brackets: str) -> str:
    """The brackets of a glob as a regular expression."""
    inner = brackets[1:-1]
    negated = inner.startswith("!")
    characters = re.sub(r"([\\\[^&~|])", r"\\\1", inner[negated:])
    return f"(?!/)[{'^' if negated else ''}{characters}]"


def _split_name(path: str) -> tuple[str, str | None]:
    """The format's and the compression's extension of a path."""
    parts = path.rpartition("/")[2].lower().split(".")
    compression = COMPRESSIONS.get(parts[-1]) if len(parts) > 2 else None
    return (parts[-2] if compression else parts[-1]), compression


def _format_of(path: str, setting: str) -> str:
    extension = _split_name(path)[0]
    if extension not in FORMATS:
        raise DataError(
            f"{setting}.path: {path} has an unknown format; the name must end in one of "
            + ", ".join(f".{name}" for name in FORMATS)
            + " (JSON Lines and CSV also with .gz, .zst or .bz2)"
        )
    return FORMATS[extension]


def opened(file: SourceFile) -> pa.NativeFile:
    """A stream of the uncompressed content; of a Parquet file the file itself."""
    filesystem_, path = filesystem(file.uri)
    if file.format == "parquet":
        return filesystem_.open_input_file(path)
    return filesystem_.open_input_stream(path, compression=_split_name(path)[1])
