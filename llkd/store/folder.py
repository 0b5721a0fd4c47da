"""Files of a run directory on any filesystem, written atomically.

A file is built in memory, since the size of a shard is bounded, and appears in one step: on a local
disk it is written under a temporary name and renamed; on an object store it is one object. Requests to
an object store are slow, so files are opened without first checking that they exist.
"""

import contextlib
import json
import os
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from llkd.errors import DamageError, StorageError
from llkd.store.filesystems import GOOGLE, filesystem
from llkd.store.schema import shard_name, shard_number
from llkd.store.seal import is_sealed, sealed

_TEMPORARY_SUFFIX = ".tmp"


@contextlib.contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    """Convert the errors of a filesystem.

    Raises:
        StorageError: `Cannot <what>`, with the cause.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise StorageError(f"Cannot {what}: {error}") from error


class FileState(NamedTuple):
    """The state of a file in a listing."""

    size: int
    """Bytes."""
    modified: int
    """Modification time, in nanoseconds."""


@dataclass(frozen=True)
class Folder:
    """A folder of shards and small files; it need not exist yet."""

    uri: str

    def names(self) -> list[str]:
        """The sorted names of its files and folders, except temporary ones; empty if it does not exist.

        Raises:
            StorageError: the folder cannot be listed.
        """
        filesystem_, path = filesystem(self.uri)
        if filesystem_.type_name != GOOGLE:
            return sorted(info.base_name for info in self._infos())
        # Google has no folders: they exist only as prefixes of their files.
        inner = (Path(info.path).relative_to(path).parts[0] for info in self._infos(deep=True))
        return sorted({name for name in inner if not name.startswith(".")})

    def files(self) -> dict[str, FileState]:
        """Its files by name, except temporary ones, in one listing.

        Raises:
            StorageError: the folder cannot be listed.
        """
        return {
            info.base_name: FileState(info.size, info.mtime_ns)
            for info in self._infos()
            if info.type == fs.FileType.File
        }

    def _infos(self, deep: bool = False) -> list[fs.FileInfo]:
        filesystem_, path = filesystem(self.uri)
        selected = fs.FileSelector(path, allow_not_found=True, recursive=deep)
        with _storage_errors(f"list {self.uri}"):
            found = filesystem_.get_file_info(selected)
        return [info for info in found if not info.base_name.startswith(".")]

    def shards(self) -> set[int]:
        """The numbers of the existing shards."""
        numbers = (shard_number(info.base_name) for info in self._infos())
        return {number for number in numbers if number is not None}

    def exists(self, name: str) -> bool:
        """Whether a file exists.

        Raises:
            StorageError: the storage fails.
        """
        return bool(self._info(name).type == fs.FileType.File)

    def size(self, name: str) -> int | None:
        """The size of a file in bytes; None if it does not exist.

        Raises:
            StorageError: the storage fails.
        """
        size: int | None = self._info(name).size
        return size

    def _info(self, name: str) -> fs.FileInfo:
        filesystem_, path = filesystem(self.uri)
        with _storage_errors(f"look for {self.uri}/{name}"):
            return filesystem_.get_file_info(f"{path}/{name}")

    def read_bytes(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            DamageError: the file does not exist.
            StorageError: the file cannot be read.
        """
        data = self._data(name)
        if data is None:
            raise self._missing(name)
        return data

    def _data(self, name: str) -> bytes | None:
        filesystem_, path = filesystem(self.uri)
        with _storage_errors(f"read {self.uri}/{name}"):
            try:
                with _opened(filesystem_, f"{path}/{name}") as file:
                    return bytes(file.read())
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _missing(self, name: str) -> DamageError:
        return DamageError(f"Cannot read {self.uri}/{name}: it does not exist")

    def write_bytes(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file atomically; an existing one is replaced.

        Raises:
            StorageError: the file cannot be written; an existing file is unchanged.
        """
        filesystem_, path = filesystem(self.uri)
        try:
            if isinstance(filesystem_, fs.LocalFileSystem):
                _uninterrupted(_write_local, Path(path), name, data)
            else:
                _uninterrupted(_put, filesystem_, f"{path}/{name}", data)
        except (pa.ArrowException, OSError) as error:
            raise StorageError(
                f"Cannot write {self.uri}/{name}: {error}",
                "Free disk space or correct the folder's permissions, then run the same command "
                "again: it continues from here.",
            ) from error

    def crc32(self, name: str) -> int:
        """The CRC-32 of a file of any size, read in blocks.

        Raises:
            StorageError: the file cannot be read.
        """
        filesystem_, path = filesystem(self.uri)
        found = 0
        with (
            _storage_errors(f"read {self.uri}/{name}"),
            filesystem_.open_input_file(f"{path}/{name}") as file,
        ):
            while data := file.read(1 << 24):
                found = zlib.crc32(data, found)
        return found

    def read_json(self, name: str) -> Any:
        """The value of a JSON file.

        Raises:
            DamageError: the file is missing or damaged.
            StorageError: the file cannot be read.
        """
        found = self.read_json_if_there(name)
        if found is None:
            raise self._missing(name)
        return found

    def read_json_if_there(self, name: str) -> Any | None:
        """The value of a JSON file; None if it does not exist. Takes one request less than `exists`.

        Raises:
            DamageError: the file is damaged.
            StorageError: the file cannot be read.
        """
        before = None
        while (data := self._data(name)) is not None:
            try:
                return json.loads(data)
            except ValueError as error:
                # pyarrow reads an object up to the size it had before. If the object was replaced in
                # between, the data may be truncated: read until two reads agree.
                if data == before:
                    raise self._damaged(name, error) from error
                before = data
        return None

    def write_json(self, name: str, value: Any, indent: int | None = 2) -> None:
        """Write a JSON file, indented by default."""
        self.write_bytes(name, json.dumps(value, indent=indent, ensure_ascii=False).encode())

    def read_shard(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The table of a shard, or some of its columns.

        Raises:
            DamageError: the shard is missing or damaged, or lacks a column.
            StorageError: the shard cannot be read.
        """
        name = shard_name(shard)
        data = self.read_bytes(name)
        if not is_sealed(data):
            raise self._damaged(name, "its content does not match its checksum")
        file = pq.ParquetFile(pa.BufferReader(data))
        table = file.read(columns and list(columns), use_threads=False)
        if missing := set(columns or ()) - set(table.column_names):
            raise DamageError(f"{self.uri}/{name} lacks the columns {sorted(missing)}")
        return table

    def _damaged(self, name: str, error: Exception | str) -> DamageError:
        return DamageError(
            f"{self.uri}/{name} is damaged: {error}",
            "Delete it and run the same command again, which rebuilds it or names what else to "
            "delete.",
        )

    def write_shard(self, shard: int, table: pa.Table) -> int:
        """Write a shard with an embedded checksum, which `read_shard` verifies; returns the CRC-32
        of the file."""
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
        """Delete the folder with its content, if it exists.

        Raises:
            StorageError: the folder cannot be deleted.
        """
        filesystem_, path = filesystem(self.uri)
        with _storage_errors(f"delete {self.uri}"), contextlib.suppress(FileNotFoundError):
            if filesystem_.type_name == GOOGLE:  # folders exist only as prefixes
                filesystem_.delete_dir_contents(path, missing_dir_ok=True)
            else:
                filesystem_.delete_dir(path)

    def delete_content(self, but: str) -> None:
        """Delete all files and folders in it except one, if it exists.

        Args:
            but: the name of the one that stays.

        Raises:
            StorageError: one cannot be deleted.
        """
        files = self.files()
        for name in self.names():
            if name in files and name != but:
                self.delete_file(name)
            elif name != but:
                Folder(f"{self.uri}/{name}").delete()

    def delete_file(self, name: str) -> None:
        """Delete a file, if it exists.

        Raises:
            StorageError: the file cannot be deleted.
        """
        filesystem_, path = filesystem(self.uri)
        with _storage_errors(f"delete {self.uri}/{name}"), contextlib.suppress(FileNotFoundError):
            filesystem_.delete_file(f"{path}/{name}")

    def delete_temporary(self) -> None:
        """Delete the temporary files of killed writers (local disks only).

        Only the process that holds the run directory may call this, before it starts to write.
        """
        filesystem_, path = filesystem(self.uri)
        if isinstance(filesystem_, fs.LocalFileSystem):
            for leftover in Path(path).rglob(f".*{_TEMPORARY_SUFFIX}"):
                leftover.unlink(missing_ok=True)


def _encoding(schema: pa.Schema) -> dict[str, Any]:
    """pyarrow's options for writing a table: small files for text, speed for numbers.

    Numbers are rewritten every epoch. They hardly repeat, so a dictionary and statistics would take
    five times as long to write as the numbers. Row numbers stored as differences take almost no space.
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
    """Open a file that is read as a whole."""
    if filesystem_.type_name == GOOGLE:
        # A stream takes one request instead of two, and pyarrow would hold the interpreter lock
        # during the second.
        return filesystem_.open_input_stream(path, compression=None)
    return filesystem_.open_input_file(path)


@cache
def _writers() -> ThreadPoolExecutor:
    """Threads that write for the main thread."""
    return ThreadPoolExecutor(thread_name_prefix="write")


def _uninterrupted(write: Callable[..., None], *arguments: Any) -> None:
    """Call a function that an interrupt must not end halfway: it would leave a temporary file, or store an
    empty object. Interrupts, by which Ray cancels tasks, reach the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        write(*arguments)
        return
    written = _writers().submit(write, *arguments)
    try:
        written.result()
    finally:
        wait([written])


def _put(filesystem_: fs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    with filesystem_.open_output_stream(path, compression=None) as file:
        file.write(data)


def _write_local(folder: Path, name: str, data: bytes | pa.Buffer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{uuid.uuid4().hex}{_TEMPORARY_SUFFIX}"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def portable_path(path: str) -> str:
    """A path for fingerprints and messages: relative to the working directory if it lies inside."""
    here = os.getcwd() + os.sep
    return path.removeprefix(here)
