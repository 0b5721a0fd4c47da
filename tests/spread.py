"""A cluster of several nodes with two GPUs each, and teachers that are spread over two of them.

    python -m tests.spread CONFIG FOLDER

CONFIG's corpus has been ingested. What was seen is written into FOLDER. The GPUs are only there for the scheduler.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import get_current_placement_group, placement_group_table

from llkd.cluster import actor_pool, connection
from llkd.cluster.environment import ADDRESS_VARIABLE
from llkd.config.load import load_config
from llkd.config.run import TaskConfig, TeacherConfig
from llkd.errors import LLKDError, TeacherError
from llkd.teacher.stage import label
from tests.conftest import SilentTracker
from tests.fakes import KeywordTeacher

NODES, GPUS, CPUS = 4, 2, 1
"""And of each."""
ON_EACH: connection.Resources = {"GPU": 2, "CPU": 1, "gpu_worker": 1}
"""What a replica takes on each of its two nodes."""
PATIENCE = 120
"""Seconds in which something must have come about."""


def place() -> list[Any]:
    """[the node, its GPU] of a worker that an engine starts; it holds them for a moment, so that
    all of an engine's are there at once."""
    time.sleep(1)
    context = ray.get_runtime_context()
    return [context.get_node_id(), *context.get_accelerator_ids()["GPU"]]


def told() -> dict[str, Any]:
    """Where this actor is, which group it is in, and where its workers are."""
    worker = ray.remote(num_cpus=0, num_gpus=1)(place)
    group, context = get_current_placement_group(), ray.get_runtime_context()
    table = placement_group_table(group)
    return {
        "group": group.id.hex(),
        "strategy": table["strategy"],
        "bundles": [table["bundles"][k] for k in sorted(table["bundles"])],
        "nodes": list(table["bundles_to_node_id"].values()),
        "node": context.get_node_id(),
        "held": context.get_assigned_resources(),
        "workers": ray.get([worker.remote() for _ in table["bundles"]], timeout=PATIENCE),
    }


class SpreadTeacher(KeywordTeacher):
    """Tells where it is in a file of the folder `told`; waits until there are two of it."""

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        super().__init__(teacher, task)
        seen = told()
        folder = Path(teacher.engine_args["told"])
        (folder / seen["group"]).write_text(json.dumps(seen))
        wait_for(lambda: len(list(folder.iterdir())) >= 2)


class Meeting:
    """Takes items a and b, which wait for c, which another must take; the item `last` of that one
    ends when the first is let go."""

    def __init__(self, folder: str) -> None:
        self._met = Path(folder) / "met"

    def __call__(self, item: str) -> list[Any]:
        if item in "ab":
            wait_for(self._met.exists)
        there = len(groups())
        if item == "c":
            self._met.touch()
        if item == "last":
            wait_for(lambda: len(groups()) == 1)
        return [item, there, len(groups())]


class Broken:
    """Cannot be made."""

    def __init__(self) -> None:
        raise TeacherError("cannot be made")

    def __call__(self, item: Any) -> Any:
        raise AssertionError("never made")


class Echo:
    """Returns the item."""

    def __call__(self, item: Any) -> Any:
        return item


def groups() -> list[str]:
    """The groups that are there or wait."""
    return [k for k, v in placement_group_table().items() if v["state"] != "REMOVED"]


def wait_for(seen: Callable[[], bool]) -> None:
    """Until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def cluster() -> Iterator[None]:
    """Nodes that are all alike; the first is the head."""
    from ray.cluster_utils import Cluster

    size = {
        "num_cpus": CPUS, "num_gpus": GPUS, "resources": {"gpu_worker": 1},
        "object_store_memory": 80 << 20,
    }  # fmt: skip
    made = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **size})
    try:
        for _ in range(NODES - 1):
            made.add_node(**size)
        os.environ[ADDRESS_VARIABLE] = str(made.address)
        connection.connect()
        yield
    finally:
        connection.disconnect()
        made.shutdown()


def left() -> list[str]:
    """Groups that a pool has left; Ray removes them in its own time."""
    deadline = time.monotonic() + PATIENCE / 6
    while groups() and time.monotonic() < deadline:
        time.sleep(0.1)
    return groups()


def pool(actor: Any, arguments: tuple[Any, ...], items: Sequence[Any], most: int) -> Iterator[Any]:
    """Work on a pool of actors over two nodes each."""
    return actor_pool.run_on_actors(
        actor, arguments, items, pool=(most, most), resources=ON_EACH, nodes=2
    )


def main() -> None:
    """Label a corpus by two teachers, then let pools shrink, fail and be left."""
    path, folder = sys.argv[1], Path(sys.argv[2])
    config, seen = load_config(path, []), {}
    with cluster():
        manifest = label(config, ["corpus"], SilentTracker())["corpus"]
        seen["label"] = {"rows": sum(manifest.results["rows"]), "left": left()}
        results = list(pool(Meeting, (str(folder),), ["a", "b", "c", "last"], 2))
        seen["shrunk"] = {"results": results, "left": left()}
        try:
            list(pool(Broken, (), [1, 2], 1))
        except LLKDError as error:
            seen["broken"] = {"error": [type(error).__name__, str(error)], "left": left()}
        try:
            for _ in pool(Echo, (), list(range(200)), 2):
                there = len(groups())
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            seen["interrupted"] = {"there": there, "left": left()}
        wait_for(lambda: ray.available_resources().get("GPU", 0) == NODES * GPUS)
    (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
