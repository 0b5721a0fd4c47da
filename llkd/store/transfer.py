"""Copies folders between this machine and a store."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from llkd.errors import StorageError
from llkd.store.filesystems import GOOGLE, filesystem
from llkd.store.folder import Folder
from llkd.store.scratch import scratch_folder


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """A local path with the files of a folder: the folder itself, or a temporary download."""
    filesystem_, path = filesystem(uri)
    if isinstance(filesystem_, fs.LocalFileSystem):
        yield path
        return
    with scratch_folder() as directory:
        try:
            if filesystem_.type_name == GOOGLE:  # its listings contain no folders
                for info in filesystem_.get_file_info(fs.FileSelector(path, recursive=True)):
                    inner = Path(info.path).relative_to(path).parent
                    (directory / inner).mkdir(parents=True, exist_ok=True)
            fs.copy_files(path, str(directory), source_filesystem=filesystem_)
        except OSError as error:
            raise StorageError(f"Cannot copy {uri} to {directory}: {error}") from error
        yield str(directory)


def upload_folder(directory: Path, uri: str, last: str | None = None) -> None:
    """Upload all files of a local directory, each atomically.

    Args:
        directory: the local directory.
        uri: the folder to upload to.
        last: name of the file that is uploaded last and marks the others as complete.

    Raises:
        StorageError: a file cannot be read or written.
    """
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    for path in sorted(paths, key=lambda path: path.name == last):
        parent = path.relative_to(directory).parent.as_posix()
        target = Folder(uri if parent == "." else f"{uri}/{parent}")
        try:
            data = pa.memory_map(str(path)).read_buffer()  # as large as a model
        except OSError as error:
            raise StorageError(f"Cannot read {path}: {error}") from error
        target.write_bytes(path.name, data)
