"""Whole folders between this machine and a store."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from llkd.errors import StorageError
from llkd.store.folder import GOOGLE, Folder, filesystem
from llkd.store.scratch import scratch_folder


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """A path on this machine with the files of a folder: the folder itself, or a temporary
    download."""
    filesystem_, path = filesystem(uri)
    if isinstance(filesystem_, fs.LocalFileSystem):
        yield path
        return
    with scratch_folder() as directory:
        try:
            if filesystem_.type_name == GOOGLE:  # its listings have no folders
                for info in filesystem_.get_file_info(fs.FileSelector(path, recursive=True)):
                    inner = Path(info.path).relative_to(path).parent
                    (directory / inner).mkdir(parents=True, exist_ok=True)
            fs.copy_files(path, str(directory), source_filesystem=filesystem_)
        except OSError as error:
            raise StorageError(f"Cannot copy {uri} to {directory}: {error}") from error
        yield str(directory)


def upload_folder(directory: Path, uri: str, last: str | None = None) -> None:
    """Put every file of a local directory into a folder, each whole.

    Args:
        directory: whose files.
        uri: the folder.
        last: the file that is uploaded after all others, and marks them as complete.

    Raises:
        StorageError: one cannot be read or written.
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
