"""Files of a run directory, on any filesystem: there whole, or not at all.

A file is built in memory (a shard is bounded) and appears in one step: written aside and renamed
on a local disk, put as one object on an object store. There a request is what costs, so nothing is
looked for that the request itself tells.
"""

import contextlib
import json
import os
import uuid
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from llkd.errors import DamageError, StorageError
from llkd.store.schema import shard_name, shard_number
from llkd.store.seal import is_sealed, sealed

_TEMPORARY_SUFFIX = ".tmp"
S3_ATTEMPTS = 6
"""How often a request is tried: with growing pauses, for a quarter of a minute where nobody listens
and for half a minute where nobody answers."""
GOOGLE = "gcs"
"""What pyarrow calls Google's store."""
GCS_SECONDS = 60
"""For how long a request to Google's store is tried again; its own default is 15 minutes."""


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or URI, and the path within it.

    What an object store has to be told beside the bucket is in the environment: for `s3://`
    AWS_ENDPOINT_URL, AWS_REGION and the credentials, for `gs://` those of Google.

    Raises:
        StorageError: the URI is of a kind that pyarrow does not know.
    """
    scheme, separator, path = uri.partition("://")
    if not separator:
        return fs.LocalFileSystem(), os.path.abspath(uri)
    if scheme not in ("s3", "gs"):
        return _from_uri(uri)
    # A name is taken as it is: within a URI a space or a % would mean something else.
    bucket, _, key = path.strip("/").partition("/")
    filesystem_, root = _bucket(f"{scheme}://{bucket}")
    return filesystem_, f"{root}/{key}".rstrip("/")


@cache
def _bucket(uri: str) -> tuple[fs.FileSystem, str]:
    """One filesystem for all of a bucket: each has connections of its own."""
    found, root = _from_uri(uri)
    make, (options,) = found.__reduce__()
    if found.type_name == "s3":
        tries = fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS)
        # A small file is one request then, and three without.
        return make({**options, "retry_strategy": tries, "allow_delayed_open": True}), root
    return make({**options, "retry_time_limit": timedelta(seconds=GCS_SECONDS)}), root


@cache
def _from_uri(uri: str) -> tuple[fs.FileSystem, str]:
    try:
        return fs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(f"Cannot open {uri}: {error}") from error


def forget_filesystems() -> None:
    """Look at the environment again when the next file is asked for."""
    _bucket.cache_clear()
    _from_uri.cache_clear()


@contextlib.contextmanager
def _telling(what: str) -> Iterator[None]:
    """Errors of a filesystem as ours.

    Raises:
        StorageError: `Cannot <what>`, and why.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"Cannot {what}: {error}") from error


class FileState(NamedTuple):
    """What a listing tells of a file."""

    size: int
    """Bytes."""
    modified: int
    """When it was written, in nanoseconds."""


@dataclass(frozen=True)
class Folder:
    """A folder of small files and shards. It need not exist yet."""

    uri: str

    def names(self) -> list[str]:
        """The finished files and folders in it, sorted; none if it does not exist.

        Raises:
            StorageError: it cannot be listed.
        """
        filesystem_, path = filesystem(self.uri)
        if filesystem_.type_name != GOOGLE:
            return sorted(info.base_name for info in self._infos())
        # Its listings hold no folder of which there is nothing but what is in it.
        inner = (Path(info.path).relative_to(path).parts[0] for info in self._infos(deep=True))
        return sorted({name for name in inner if not name.startswith(".")})

    def files(self) -> dict[str, FileState]:
        """The finished files in it, by name, in one listing.

        Raises:
            StorageError: it cannot be listed.
        """
        return {
            info.base_name: FileState(info.size, info.mtime_ns)
            for info in self._infos()
            if info.type == fs.FileType.File
        }

    def _infos(self, deep: bool = False) -> list[fs.FileInfo]:
        filesystem_, path = filesystem(self.uri)
        selected = fs.FileSelector(path, allow_not_found=True, recursive=deep)
        with _telling(f"list {self.uri}"):
            found = filesystem_.get_file_info(selected)
        return [info for info in found if not info.base_name.startswith(".")]

    def shards(self) -> set[int]:
        """The numbers of the shards that are there."""
        numbers = (shard_number(info.base_name) for info in self._infos())
        return {number for number in numbers if number is not None}

    def exists(self, name: str) -> bool:
        """Whether a finished file of that name is there.

        Raises:
            StorageError: that cannot be told.
        """
        return bool(self._info(name).type == fs.FileType.File)

    def size(self, name: str) -> int | None:
        """The bytes of a file; None if it is not there.

        Raises:
            StorageError: that cannot be told.
        """
        size: int | None = self._info(name).size
        return size

    def _info(self, name: str) -> fs.FileInfo:
        filesystem_, path = filesystem(self.uri)
        with _telling(f"look for {self.uri}/{name}"):
            return filesystem_.get_file_info(f"{path}/{name}")

    def read_bytes(self, name: str) -> bytes:
        """A whole file.

        Raises:
            DamageError: it is not there.
            StorageError: it cannot be read.
        """
        data = self._data(name)
        if data is None:
            raise self._missing(name)
        return data

    def _data(self, name: str) -> bytes | None:
        filesystem_, path = filesystem(self.uri)
        with _telling(f"read {self.uri}/{name}"):
            try:
                with _opened(filesystem_, f"{path}/{name}") as file:
                    return bytes(file.read())
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _missing(self, name: str) -> DamageError:
        return DamageError(f"Cannot read {self.uri}/{name}: it is not there")

    def write_bytes(self, name: str, data: bytes | pa.Buffer) -> None:
        """Put a whole file in place, over an older one if there is one.

        Raises:
            StorageError: it cannot be written; an older file is untouched.
        """
        filesystem_, path = filesystem(self.uri)
        try:
            if isinstance(filesystem_, fs.LocalFileSystem):
                _write_local(Path(path), name, data)
            else:
                # An interrupt between the opening and the writing would put an empty object: it
                # meets the main thread only.
                with ThreadPoolExecutor(1) as thread:
                    thread.submit(_put, filesystem_, f"{path}/{name}", data).result()
        except (pa.ArrowException, OSError) as error:
            raise StorageError(
                f"Cannot write {self.uri}/{name}: {error}.",
                "See that there is room and that the folder can be written; the same "
                "command then goes on from here.",
            ) from error

    def crc32(self, name: str) -> int:
        """The CRC-32 of a file, which may be larger than the memory.

        Raises:
            StorageError: it cannot be read.
        """
        filesystem_, path = filesystem(self.uri)
        found = 0
        with (
            _telling(f"read {self.uri}/{name}"),
            filesystem_.open_input_file(f"{path}/{name}") as file,
        ):
            while data := file.read(1 << 24):
                found = zlib.crc32(data, found)
        return found

    def read_json(self, name: str) -> Any:
        """A JSON file.

        Raises:
            DamageError: it is missing or damaged.
            StorageError: it cannot be read.
        """
        found = self.read_json_if_there(name)
        if found is None:
            raise self._missing(name)
        return found

    def read_json_if_there(self, name: str) -> Any | None:
        """A JSON file; None if it is not there. One request less than to ask for it first.

        Raises:
            DamageError: it is damaged.
            StorageError: it cannot be read.
        """
        before = None
        while (data := self._data(name)) is not None:
            try:
                return json.loads(data)
            except ValueError as error:
                # An object is read up to the size that it had just before. Where it was put anew
                # in between, that may be half of it; another look tells.
                if data == before:
                    raise self._damaged(name, error) from error
                before = data
        return None

    def write_json(self, name: str, value: Any, indent: int | None = 2) -> None:
        """A JSON file, indented for people."""
        self.write_bytes(name, json.dumps(value, indent=indent, ensure_ascii=False).encode())

    def read_shard(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The table of a shard, or some of its columns.

        Raises:
            DamageError: it is missing or damaged, or lacks a column.
            StorageError: it cannot be read.
        """
        name = shard_name(shard)
        data = self.read_bytes(name)
        if not is_sealed(data):
            raise self._damaged(name, "its content does not agree with its checksum")
        file = pq.ParquetFile(pa.BufferReader(data))
        table = file.read(columns and list(columns), use_threads=False)
        if missing := set(columns or ()) - set(table.column_names):
            raise DamageError(f"{self.uri}/{name} lacks the columns {sorted(missing)}")
        return table

    def _damaged(self, name: str, error: Exception | str) -> DamageError:
        return DamageError(
            f"{self.uri}/{name} is damaged: {error}.",
            "Delete it and run the same command again: it is made anew, or it is told what "
            "else has to be.",
        )

    def write_shard(self, shard: int, table: pa.Table) -> int:
        """Put a shard in place, with a checksum in it that `read_shard` looks at; returns the
        CRC-32 of the whole file."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **_encoding(table.schema))
        data, crc = sealed(sink.getvalue())
        self.write_bytes(shard_name(shard), data)
        return crc

    def shard_rows(self, shard: int) -> int:
        """The number of rows of a shard, from its footer."""
        filesystem_, path = filesystem(self.uri)
        name = shard_name(shard)
        try:
            with filesystem_.open_input_file(f"{path}/{name}") as file:
                return int(pq.ParquetFile(file).metadata.num_rows)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(name, error) from error

    def delete(self) -> None:
        """Remove the folder and all in it, if it is there.

        Raises:
            StorageError: it cannot be removed.
        """
        filesystem_, path = filesystem(self.uri)
        with _telling(f"delete {self.uri}"), contextlib.suppress(FileNotFoundError):
            if filesystem_.type_name == GOOGLE:  # where a folder is no more than what is in it
                filesystem_.delete_dir_contents(path, missing_dir_ok=True)
            else:
                filesystem_.delete_dir(path)

    def delete_file(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            StorageError: it cannot be removed.
        """
        filesystem_, path = filesystem(self.uri)
        with _telling(f"delete {self.uri}/{name}"), contextlib.suppress(FileNotFoundError):
            filesystem_.delete_file(f"{path}/{name}")

    def delete_temporary(self) -> None:
        """Remove what writers killed in mid-write left behind (local disks only).

        Only for the one process that runs the directory, before it starts to write.
        """
        filesystem_, path = filesystem(self.uri)
        if isinstance(filesystem_, fs.LocalFileSystem):
            for leftover in Path(path).rglob(f".*{_TEMPORARY_SUFFIX}"):
                leftover.unlink(missing_ok=True)


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """How pyarrow writes a table: text packed well, numbers as fast as they can be.

    Numbers are read and written again every epoch. A dictionary or statistics of numbers that
    hardly repeat cost five times what the numbers do; row numbers as differences cost nothing.
    """
    if not all(pa.types.is_integer(f.type) or pa.types.is_floating(f.type) for f in schema):
        return {"compression": "zstd"}
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    return {
        "compression": "lz4",
        "use_dictionary": False,
        "write_statistics": False,
        "column_encoding": dict.fromkeys(integers, "DELTA_BINARY_PACKED"),
    }


def _opened(filesystem_: fs.FileSystem, path: str) -> pa.NativeFile:
    """A file that is read as a whole."""
    if filesystem_.type_name == GOOGLE:
        # One request instead of two; and pyarrow makes the second while it keeps all other threads
        # from running.
        return filesystem_.open_input_stream(path, compression=None)
    return filesystem_.open_input_file(path)


def _put(filesystem_: fs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    with filesystem_.open_output_stream(path, compression=None) as file:
        file.write(data)


def _write_local(folder: Path, name: str, data: bytes | pa.Buffer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{name}.{uuid.uuid4().hex}{_TEMPORARY_SUFFIX}"
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(folder / name)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def portable_path(path: str) -> str:
    """A path as fingerprints keep it: relative to the working directory where it lies inside."""
    here = os.getcwd() + os.sep
    return path.removeprefix(here)
