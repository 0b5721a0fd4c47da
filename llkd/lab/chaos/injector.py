"""Finds and kills the processes of a run on every node of a Ray cluster."""

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
from llkd.lab.chaos.outcome import TITLES

MARK = "LLKD_CHAOS"
"""Environment variable of all processes of the started runs, with a random value for each test."""

REPLY_SECONDS = 0.5
"""Delay of the death of a node, for the reply of its agent to leave it."""

STORE_BYTES = 8 << 20
"""Size of the objects that fill a store."""


@ray.remote(num_cpus=0, max_concurrency=4)
class NodeAgent:
    """Injects faults on its node, into the descendants of its raylet that have a mark."""

    def __init__(self, mark: str) -> None:
        self._raylet, self._mark = psutil.Process().parent(), mark

    def inject(self, kind: str, choice: float) -> str | None:
        """Kill a process of a kind by SIGKILL.

        Args:
            kind: one of TITLES; or `node`, which also ends other jobs there.
            choice: in [0, 1), selects one of the candidates.

        Returns:
            The title of the process; None if there was no candidate.
        """
        if kind == "node":
            Timer(REPLY_SECONDS, self._raylet.kill).start()
            return "raylet"
        found = self._victims([kind])
        if not found:
            return None
        title, process = found[int(choice * len(found))]
        process.send_signal(signal.SIGKILL)
        return title

    def left(self, kinds: Sequence[str]) -> list[str]:
        """The running processes of these kinds."""
        return [f"{title} (process {process.pid})" for title, process in self._victims(kinds)]

    def fill_store(self, seconds: float) -> str:
        """Occupy the space of this node's object store for some seconds."""
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
    """(title, process) of those of these kinds that have the mark."""
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
    """This process's environment, with the mark for a driver and, through the job's config, for
    its workers on any cluster. A submitted job has such a config already."""
    config = json.loads(os.environ.get(JOB_CONFIG_VARIABLE, "{}"))
    runtime_env = config.get("runtime_env") or {}
    variables = {**(runtime_env.get("env_vars") or {}), MARK: mark}
    config["runtime_env"] = {**runtime_env, "env_vars": variables}
    return {**os.environ, MARK: mark, JOB_CONFIG_VARIABLE: json.dumps(config)}


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's record of every node that is alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def other_jobs() -> list[str]:
    """The commands of the other jobs of this cluster, without Ray's own jobs."""
    own = ray.get_runtime_context().get_job_id()
    jobs = ray_internals.running_jobs()
    return [command or f"job {job}" for job, command in jobs.items() if job != own]


class Injector:
    """Injects faults anywhere in the cluster, by an agent on every node."""

    def __init__(self, mark: str) -> None:
        """
        Args:
            mark: of the processes of the runs; see `marked_environment`.
        """
        self._mark = mark
        self._by_node: dict[str, Any] = {}
        self._head = ray.get_runtime_context().get_node_id()

    def inject(self, kind: str, random: np.random.Generator) -> str | None:
        """Kill a process of a kind on a random node; returns its title and node, None if no kill
        is confirmed. The head's raylet is spared, as a cluster does not survive its loss."""
        self._refresh()
        nodes = [node for node in self._by_node if kind != "node" or node != self._head]
        for node in random.permutation(nodes):
            try:
                choice = float(random.random())
                found = ray.get(self._by_node[node].inject.remote(kind, choice), timeout=20)
            except ray.exceptions.RayError:
                continue
            if found is not None:
                return f"{found} on {node[:8]}"
        return None

    def fill_stores(self, seconds: float) -> str | None:
        """Occupy all object stores for some seconds; None if that is confirmed for none of them."""
        self._refresh()
        calls = [agent.fill_store.remote(seconds) for agent in self._by_node.values()]
        filled, _ = ray.wait(calls, num_returns=len(calls), timeout=seconds + 60)
        found = []
        for call in filled:  # a node may just be lost, or its agent not be started yet
            with contextlib.suppress(ray.exceptions.RayError):
                found.append(str(ray.get(call)))
        return f"{found[0]} on {len(found)} nodes" if found else None

    def left(self) -> list[str]:
        """The running processes of runs, on all nodes."""
        self._refresh()
        found: list[str] = []
        for agent in self._by_node.values():
            with contextlib.suppress(ray.exceptions.RayError):
                found += ray.get(agent.left.remote(list(TITLES)), timeout=20)
        return found

    def _refresh(self) -> None:
        """Start agents on new nodes, and forget those of lost nodes."""
        alive = {node["NodeID"] for node in alive_nodes()}
        for node in alive - self._by_node.keys():
            strategy = NodeAffinitySchedulingStrategy(node, soft=False)
            self._by_node[node] = NodeAgent.options(scheduling_strategy=strategy).remote(self._mark)  # type: ignore[attr-defined]
        for node in self._by_node.keys() - alive:
            del self._by_node[node]


def processes_with(mark: str) -> list[str]:
    """The processes of this machine, without this one, that have the mark, each with its command."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and _has(process, mark):
                found.append(f"process {process.pid}, {' '.join(process.cmdline())[:120]}")
    return found
