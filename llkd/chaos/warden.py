"""Finds and kills processes of a run, on every node of a Ray cluster."""

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

TITLES = {
    "actor": "ray::MapWorker",
    "engine": "VLLM::EngineCore",
    "trainer": "ray::RayTrainWorker",
    "task": "ray::Map(",
}
"""How the processes that can be killed by name call themselves: an actor of the teacher's or the
student's pool, an engine in a process of its own, a training worker, a task over shards."""

KINDS = (*TITLES, "node", "driver", "store")
"""All disturbances: also the loss of a node by the death of its raylet, of the job's own process,
and of the space in every object store."""

STORE_BYTES = 8 << 20
"""Of an object with which a store is filled."""


@ray.remote(num_cpus=0, max_concurrency=4)
class Warden:
    """Sees the processes of its node: the descendants of the raylet that started it."""

    def __init__(self) -> None:
        self._raylet = psutil.Process().parent()

    def strike(self, kind: str, choice: float) -> str | None:
        """Kill a process of a kind by SIGKILL, at once when it is seen.

        Args:
            kind: one of TITLES, or `node`.
            choice: in [0, 1), which of those that are there.

        Returns:
            What was killed; None if there is none.
        """
        if kind == "node":
            self._raylet.kill()
            return "raylet"
        found = self._matching([kind])
        if not found:
            return None
        title, process = found[int(choice * len(found))]
        process.send_signal(signal.SIGKILL)
        return title

    def left(self, kinds: Sequence[str]) -> list[str]:
        """The processes of some kinds that are there."""
        return [f"{title} (process {process.pid})" for title, process in self._matching(kinds)]

    def fill_store(self, seconds: float) -> str:
        """Take the space of this node's object store for a while."""
        capacity = ray.cluster_resources()["object_store_memory"] / len(alive_nodes())
        held = [
            ray.put(np.zeros(STORE_BYTES, dtype=np.uint8))
            for _ in range(int(capacity // STORE_BYTES) + 1)
        ]
        time.sleep(seconds)
        return f"object store, {len(held)} x {STORE_BYTES >> 20} MiB"

    def _matching(self, kinds: Sequence[str]) -> list[tuple[str, psutil.Process]]:
        wanted = tuple(TITLES[kind] for kind in kinds if kind in TITLES)
        found = []
        for process in self._raylet.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                title = " ".join(process.cmdline())
                if title.startswith(wanted):
                    found.append((title.strip()[:60], process))
        return found


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's description of every node that is there."""
    return [node for node in ray.nodes() if node["Alive"]]


class Wardens:
    """A warden on every node; on those that come, when it is next asked."""

    def __init__(self) -> None:
        self._by_node: dict[str, Any] = {}
        self._head = ray.get_runtime_context().get_node_id()

    def strike(self, kind: str, random: np.random.Generator) -> str | None:
        """Kill a process of a kind on any node; the head's raylet is spared, for a cluster does
        not outlive its head."""
        self._refresh()
        nodes = [node for node in self._by_node if kind != "node" or node != self._head]
        for node in random.permutation(nodes):
            try:
                choice = float(random.random())
                found = ray.get(self._by_node[node].strike.remote(kind, choice), timeout=20)
            except ray.exceptions.RayError:
                if kind == "node":  # it died before it could say so
                    return "raylet"
                continue
            if found is not None:
                return f"{found} on {node[:8]}"
        return None

    def fill_stores(self, seconds: float) -> str:
        """Take the space of all object stores for a while."""
        self._refresh()
        calls = [warden.fill_store.remote(seconds) for warden in self._by_node.values()]
        with contextlib.suppress(ray.exceptions.RayError):
            return str(ray.get(calls[0], timeout=seconds + 60)) + f" on {len(calls)} nodes"
        return "object stores"

    def left(self) -> list[str]:
        """The processes of runs that are there."""
        self._refresh()
        found: list[str] = []
        for warden in self._by_node.values():
            with contextlib.suppress(ray.exceptions.RayError):
                found += ray.get(warden.left.remote(list(TITLES)), timeout=20)
        return found

    def _refresh(self) -> None:
        alive = {node["NodeID"] for node in alive_nodes()}
        for node in alive - self._by_node.keys():
            strategy = NodeAffinitySchedulingStrategy(node, soft=False)
            self._by_node[node] = Warden.options(scheduling_strategy=strategy).remote()  # type: ignore[attr-defined]
        for node in self._by_node.keys() - alive:
            del self._by_node[node]


def processes_with(marker: str) -> list[int]:
    """Processes of this machine, but this one, that have an environment variable of a name."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and marker in process.environ():
                found.append(process.pid)
    return found
