"""A cluster of nodes with two GPUs each, and teachers that span two of the nodes.

    python -m tests.spread CONFIG FOLDER

The corpus of CONFIG has been ingested. Observations are written into FOLDER. The GPUs exist for the
scheduler only. Waits have no deadline: the time limit of the test ends them.
"""

import json
import os
import sys
import time
import uuid
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
"""Nodes of the cluster, and GPUs and CPUs of each."""
ON_EACH: connection.Resources = {"GPU": 2, "CPU": 1, "gpu_worker": 1}
"""Resources of a replica on each of its two nodes."""


def place(meeting: Path, workers: int) -> list[Any]:
    """[node, GPU] of a worker that an engine starts; held until all its workers have one."""
    meeting.mkdir(exist_ok=True)
    (meeting / uuid.uuid4().hex).touch()
    wait_for(lambda: len(list(meeting.iterdir())) == workers)
    context = ray.get_runtime_context()
    return [context.get_node_id(), *context.get_accelerator_ids()["GPU"]]


def observed(folder: Path) -> dict[str, Any]:
    """The node and the placement group of this actor, and the places of its workers."""
    worker = ray.remote(num_cpus=0, num_gpus=1)(place)
    group, context = get_current_placement_group(), ray.get_runtime_context()
    table = placement_group_table(group)
    meeting, size = folder / f"workers-{group.id.hex()}", len(table["bundles"])
    return {
        "group": group.id.hex(),
        "strategy": table["strategy"],
        "bundles": [table["bundles"][k] for k in sorted(table["bundles"])],
        "nodes": list(table["bundles_to_node_id"].values()),
        "node": context.get_node_id(),
        "held": context.get_assigned_resources(),
        "workers": ray.get([worker.remote(meeting, size) for _ in range(size)]),
    }


class SpreadTeacher(KeywordTeacher):
    """Writes its observations into the folder `told`; waits until two replicas have."""

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        super().__init__(teacher, task)
        folder = Path(teacher.engine_args["told"])
        seen = observed(folder.parent)
        (folder / seen["group"]).write_text(json.dumps(seen))
        wait_for(lambda: len(list(folder.iterdir())) >= 2)


class Meeting:
    """Maps items a and b, which wait until another actor gets c; the item `last` of that actor waits
    until the first actor is released."""

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
    """Fails in its constructor."""

    def __init__(self) -> None:
        raise TeacherError("cannot be made")

    def __call__(self, item: Any) -> Any:
        raise AssertionError("never made")


class Echo:
    """Returns the item."""

    def __call__(self, item: Any) -> Any:
        return item


def groups() -> list[str]:
    """The placement groups that exist or wait for nodes."""
    return [k for k, v in placement_group_table().items() if v["state"] != "REMOVED"]


def wait_for(seen: Callable[[], bool]) -> None:
    """Poll until it holds."""
    while not seen():
        time.sleep(0.1)


@contextmanager
def cluster() -> Iterator[None]:
    """A cluster of identical nodes; the first is the head."""
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
        os.environ.pop(ADDRESS_VARIABLE, None)
        connection.disconnect()
        made.shutdown()


def left() -> list[str]:
    """Groups that a pool has left behind: none, once Ray has removed them."""
    wait_for(lambda: not groups())
    return groups()


def pool(actor: Any, arguments: tuple[Any, ...], items: Sequence[Any], most: int) -> Iterator[Any]:
    """Map items on a pool of actors that span two nodes each."""
    return actor_pool.run_on_actors(
        actor, arguments, items, pool=(most, most), resources=ON_EACH, nodes=2
    )


def main() -> None:
    """Label a corpus by two teachers, then let pools shrink, fail and be interrupted."""
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
