"""A cluster of several nodes with two GPUs each, and teachers that are spread over two of them.

    python -m tests.spread CONFIG FOLDER

What was seen is written into FOLDER. The GPUs are only there for the scheduler.
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

from llkd import pools, runtime
from llkd.config import TaskConfig, TeacherConfig
from llkd.config_file import load_config
from llkd.errors import LLKDError, TeacherError
from llkd.local_ray import ADDRESS_VARIABLE
from llkd.stages.ingest import ingest
from llkd.stages.label import label
from tests.conftest import SilentTracker
from tests.fakes import KeywordTeacher

NODES, GPUS, CPUS = 4, 2, 1
"""With GPUs, beside the head; and of each."""
ON_EACH = {"GPU": 2, "CPU": 1, "gpu_worker": 1}
"""What a replica takes on each of its two nodes."""
PATIENCE = 40
"""Seconds in which something must have come about."""


@ray.remote(num_cpus=0, num_gpus=1)
def place() -> list[Any]:
    """[the node, its GPU] of a worker that an engine starts; it holds them for a moment, so that
    all of an engine's are there at once."""
    time.sleep(1)
    context = ray.get_runtime_context()
    return [context.get_node_id(), *context.get_accelerator_ids()["GPU"]]


def told() -> dict[str, Any]:
    """Where this actor is, which group it is in, and where its workers are."""
    group, context = get_current_placement_group(), ray.get_runtime_context()
    table = placement_group_table(group)
    return {
        "group": group.id.hex(),
        "strategy": table["strategy"],
        "bundles": [table["bundles"][k] for k in sorted(table["bundles"])],
        "nodes": list(table["bundles_to_node_id"].values()),
        "node": context.get_node_id(),
        "held": context.get_assigned_resources(),
        "workers": ray.get([place.remote() for _ in table["bundles"]]),
    }


class SpreadTeacher(KeywordTeacher):
    """Tells where it is in a file of the folder `told`; waits until there are two of it."""

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        super().__init__(teacher, task)
        seen = told()
        folder = Path(teacher.engine_args["told"])
        (folder / seen["group"]).write_text(json.dumps(seen))
        wait_for(lambda: len(list(folder.iterdir())) >= 2)


class Lasting:
    """Ends the item `last` when no other actor of its pool has a group; reports how many there are."""

    def __call__(self, item: str) -> dict[str, Any]:
        before = len(groups())
        if item == "last":
            wait_for(lambda: len(groups()) == 1)
        else:
            time.sleep(0.3)
        return {"before": before, "after": len(groups()), "pid": os.getpid()}


class Failing:
    """Cannot be made, or does not label."""

    def __init__(self, at: str) -> None:
        self._at = at
        if at == "start":
            raise TeacherError("cannot be made")

    def __call__(self, item: Any) -> Any:
        if self._at == "item":
            raise TeacherError("cannot label")
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
    """A head without GPUs, and nodes with."""
    from ray.cluster_utils import Cluster

    size = {"object_store_memory": 80 << 20}
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **size}
    )
    try:
        for _ in range(NODES):
            made.add_node(num_cpus=CPUS, num_gpus=GPUS, resources={"gpu_worker": 1}, **size)
        os.environ[ADDRESS_VARIABLE] = str(made.address)
        runtime.connect()
        yield
    finally:
        runtime.disconnect()
        made.shutdown()


def left() -> list[str]:
    """Groups that a pool has left; Ray removes them in its own time."""
    deadline = time.monotonic() + PATIENCE / 4
    while groups() and time.monotonic() < deadline:
        time.sleep(0.1)
    return groups()


def pool(actor: Any, arguments: tuple[Any, ...], items: Sequence[Any], most: int) -> Iterator[Any]:
    """Work on a pool of actors over two nodes each."""
    return pools.run_on_actors(
        actor, arguments, items, pool=(most, most), resources=ON_EACH, nodes=2
    )


T0=time.time()
def stamp(*a): print('STAMP', round(time.time()-T0,1), *a, file=sys.stderr, flush=True)
def main() -> None:
    """Label a corpus by two teachers, then let pools shrink, fail and be left."""
    path, folder = sys.argv[1], Path(sys.argv[2])
    config, tracker = load_config(path, []), SilentTracker()
    seen: dict[str, Any] = {}
    with cluster():
        stamp("up")
        ingest(config, "corpus", tracker)
        stamp("ingested")
        manifest = label(config, ["corpus"], tracker)["corpus"]
        seen["label"] = {"rows": sum(manifest.results["rows"]), "left": left()}
        stamp("labelled")
        seen["shrunk"] = {"results": list(pool(Lasting, (), ["a", "b", "last"], 2)), "left": left()}
        stamp("shrunk")
        for at in ("start", "item"):
            try:
                list(pool(Failing, (at,), [1, 2], 1))
            except LLKDError as error:
                seen[at] = {"error": [type(error).__name__, str(error)], "left": left()}
        stamp("failed")
        try:
            for _ in pool(Failing, ("never",), list(range(200)), 2):
                seen["while it works"] = len(groups())
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            seen["interrupted"] = {"left": left()}
        stamp("interrupted")
        wait_for(lambda: ray.available_resources().get("GPU", 0) == NODES * GPUS)
    stamp("down")
    (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
