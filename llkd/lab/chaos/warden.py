"""Finds and kills processes of a run, on every node of a Ray cluster."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable, Sequence
from threading import Timer
from typing import Any

import numpy as np
import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from llkd.cluster import ray_internals
from llkd.cluster.ray_internals import JOB_CONFIG_VARIABLE

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

WHOLE_NODES = ("node", "store")
"""These strike all that runs there, whoever's it is: for a cluster of one's own."""

MARK = "LLKD_CHAOS"
"""An environment variable of all processes of the started runs. Its value is drawn for each test,
so that nobody else's processes have it."""

ANSWER_SECONDS = 0.5
"""For a warden's answer to leave its node, before that is lost."""

STORE_BYTES = 8 << 20
"""Of an object with which a store is filled."""


@ray.remote(num_cpus=0, max_concurrency=4)
class Warden:
    """Sees the processes of runs on its node: the descendants of the raylet that started it which
    have a mark."""

    def __init__(self, mark: str) -> None:
        self._raylet, self._mark = psutil.Process().parent(), mark

    def strike(self, kind: str, choice: float) -> str | None:
        """Kill a process of a kind by SIGKILL, at once when it is seen.

        Args:
            kind: one of TITLES; or `node`, which takes other people's work on it along.
            choice: in [0, 1), which of those that are there.

        Returns:
            What was killed; None if there is none.
        """
        if kind == "node":
            Timer(ANSWER_SECONDS, self._raylet.kill).start()
            return "raylet"
        found = self._victims([kind])
        if not found:
            return None
        title, process = found[int(choice * len(found))]
        process.send_signal(signal.SIGKILL)
        return title

    def left(self, kinds: Sequence[str]) -> list[str]:
        """The processes of some kinds that are there."""
        return [f"{title} (process {process.pid})" for title, process in self._victims(kinds)]

    def fill_store(self, seconds: float) -> str:
        """Take the space of this node's object store for a while, from everybody."""
        capacity = ray.cluster_resources()["object_store_memory"] / len(alive_nodes())
        held = [
            ray.put(np.zeros(STORE_BYTES, dtype=np.uint8))
            for _ in range(int(capacity // STORE_BYTES) + 1)
        ]
        time.sleep(seconds)
        return f"object store, {len(held)} x {STORE_BYTES >> 20} MiB"

    def _victims(self, kinds: Sequence[str]) -> list[tuple[str, psutil.Process]]:
        return victims(self._raylet.children(recursive=True), kinds, self._mark)


def victims(
    processes: Iterable[psutil.Process], kinds: Sequence[str], mark: str
) -> list[tuple[str, psutil.Process]]:
    """Those of some kinds that have the mark, each with its title."""
    wanted = tuple(TITLES[kind] for kind in kinds if kind in TITLES)
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if title.startswith(wanted) and _has(process, mark):
                found.append((title.strip()[:60], process))
    return found


def _has(process: psutil.Process, mark: str) -> bool:
    return process.environ().get(MARK) == mark


def marked_environment(mark: str) -> dict[str, str]:
    """This process's environment, for a driver that has the mark and whose workers get it on any
    cluster: Ray gives them what the job's config says. A submitted job has one already."""
    config = json.loads(os.environ.get(JOB_CONFIG_VARIABLE, "{}"))
    runtime_env = config.get("runtime_env") or {}
    variables = {**(runtime_env.get("env_vars") or {}), MARK: mark}
    config["runtime_env"] = {**runtime_env, "env_vars": variables}
    return {**os.environ, MARK: mark, JOB_CONFIG_VARIABLE: json.dumps(config)}


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's description of every node that is there."""
    return [node for node in ray.nodes() if node["Alive"]]


def other_jobs() -> list[str]:
    """The commands of the other jobs that this cluster runs, without Ray's own."""
    own = ray.get_runtime_context().get_job_id()
    jobs = ray_internals.running_jobs()
    return [command or f"job {job}" for job, command in jobs.items() if job != own]


class Wardens:
    """A warden on every node; on those that come, when it is next asked."""

    def __init__(self, mark: str) -> None:
        """
        Args:
            mark: of the runs' processes; see `marked_environment`.
        """
        self._mark = mark
        self._by_node: dict[str, Any] = {}
        self._head = ray.get_runtime_context().get_node_id()

    def strike(self, kind: str, random: np.random.Generator) -> str | None:
        """Kill a process of a kind on any node, and say which; None if it is not known to be
        killed. The head's raylet is spared, for a cluster does not outlive its head."""
        self._refresh()
        nodes = [node for node in self._by_node if kind != "node" or node != self._head]
        for node in random.permutation(nodes):
            try:
                choice = float(random.random())
                found = ray.get(self._by_node[node].strike.remote(kind, choice), timeout=20)
            except ray.exceptions.RayError:
                continue
            if found is not None:
                return f"{found} on {node[:8]}"
        return None

    def fill_stores(self, seconds: float) -> str | None:
        """Take the space of all object stores for a while; None if it is not known to be taken."""
        self._refresh()
        calls = [warden.fill_store.remote(seconds) for warden in self._by_node.values()]
        with contextlib.suppress(ray.exceptions.RayError):
            return str(ray.get(calls[0], timeout=seconds + 60)) + f" on {len(calls)} nodes"
        return None

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
            self._by_node[node] = Warden.options(scheduling_strategy=strategy).remote(self._mark)  # type: ignore[attr-defined]
        for node in self._by_node.keys() - alive:
            del self._by_node[node]


def processes_with(mark: str) -> list[int]:
    """Processes of this machine, but this one, that have the mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and _has(process, mark):
                found.append(process.pid)
    return found
