"""The rows that a stage leaves out, in shards beside its own: shard k of them is of shard k.

They are written first, so that the shard of a killed writer is not there where its rejects are.
"""

from collections.abc import Iterable, Sequence

from llkd.errors import IncompleteError
from llkd.store.folder import Folder
from llkd.store.schema import shard_name


def delete_shards(folder: Folder, shards: Iterable[int]) -> None:
    """Delete shards: of what is made again, which may leave out other rows or none.

    Raises:
        StorageError: one cannot be deleted.
    """
    for shard in shards:
        folder.delete_file(shard_name(shard))


def require_all_told(folder: Folder, rejects: Folder, lost: Sequence[int]) -> None:
    """Have shards made again that lack rows without a word of why.

    Args:
        folder: of the stage.
        rejects: what it left out.
        lost: the shards whose rows, with those left out, are not all that they were made from.

    Raises:
        IncompleteError: there are any.
    """
    if not lost:
        return
    delete_shards(folder, lost)
    raise IncompleteError(
        f"{rejects.uri} has lost rows that were left out of {len(lost)} shards of "
        f"{folder.uri}, first {lost[0]}.",
        "Run the same command again: these shards are made anew.",
    )
