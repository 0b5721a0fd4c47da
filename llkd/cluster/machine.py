"""Choices that depend on the machine, made once per run and stored with it.

The choice is made by timing, whose result may differ on a busy machine. A resumed run must keep its
number format, or its shards would not match.
"""

from collections.abc import Callable
from typing import Any

import ray

from llkd.cluster import connection
from llkd.store.folder import Folder

MACHINE_CHOICES = "settled.json"


def choose_once(
    folder: Folder, decide: Callable[[], dict[str, Any]], resources: connection.Resources
) -> dict[str, Any]:
    """The stored choice; on the first call, that of `decide` on a node with these resources."""
    found: dict[str, Any] | None = folder.read_json_if_there(MACHINE_CHOICES)
    if found is None:
        found = choose(decide, resources)
        folder.write_json(MACHINE_CHOICES, found)
    return found


def choose(decide: Callable[[], dict[str, Any]], resources: connection.Resources) -> dict[str, Any]:
    """The choice of `decide` on a node with these resources."""
    if connection.is_local():
        return decide()  # this is the machine
    task = ray.remote(decide).options(**connection.options_of(resources))
    return dict(ray.get(task.remote()))
