"""Heads of Ray clusters on this machine: with a job server, a token, and nodes that come and go."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FakeMultiNodeProvider,
)

from tests.conftest import ROOT

PATIENCE = 400
"""Seconds that something may take; a busy machine is many times slower."""

HEAD_TYPE = "ray.head.default"
"""What the provider of such nodes calls it."""

_COMMANDS = (
    "cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands",
    "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip


@dataclass(frozen=True)
class Head:
    """A running head node."""

    address: str
    """Of the dashboard and the job server."""
    gcs: str
    """host:port of Ray itself."""
    env: dict[str, str]
    """The environment of those who may talk to it."""
    process: subprocess.Popen[bytes]
    grows: bool
    """Whether it has an autoscaler."""

    def submit(
        self, *arguments: object, name: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of jobs/run.py; one with a name is not waited for.

        The code is uploaded where there is one node. Others of the same machine share its folder
        of such code, and delete it when they go.
        """
        options = ["--no-wait", "--submission-id", name] if name else []
        if not self.grows:
            options += ["--working-dir", str(ROOT)]
        for _ in range(30):  # the head answers some seconds before it can run jobs
            job = ROOT / "jobs/run.py" if self.grows else "jobs/run.py"
            done = self.job("submit", *options, "--", sys.executable, job, *arguments)
            if "No available agent" not in done.stderr:
                break
            time.sleep(1)
        return done

    def job(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """`ray job ...`."""
        command, *rest = map(str, arguments)
        return subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "job", command, "--address",
             self.address, *rest],
            env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip

    def autoscaler(self) -> int:
        """The version of the autoscaler that runs."""
        commands = [
            " ".join(child.cmdline()) for child in psutil.Process(self.process.pid).children()
        ]
        (monitor,) = (
            command
            for command in commands
            if "monitor.py" in command and "log_monitor" not in command
        )
        return 2 if "autoscaler/v2/monitor.py" in monitor else 1

    def raylets(self, wanted: str) -> list[psutil.Process]:
        """The raylets of a node type that are there."""
        there = {p.pid: p.info for p in psutil.process_iter(["ppid", "name"])}
        found = []
        for raylet in self.all_raylets(there):
            with contextlib.suppress(psutil.Error):
                if node_type(raylet) == wanted:
                    found.append(raylet)
        return found

    def all_raylets(self, there: Mapping[int, Mapping[str, Any]]) -> list[psutil.Process]:
        """The raylets of all nodes.

        Args:
            there: `ppid` and `name` of all processes of this machine, by their id.
        """
        found = []
        for pid, info in there.items():
            above = list(_ancestors(pid, there))
            # What a raylet starts is called so too, for a moment.
            forked = bool(above) and there[above[0]]["name"] == "raylet"
            if info["name"] == "raylet" and not forked and self.process.pid in above:
                with contextlib.suppress(psutil.Error):
                    found.append(psutil.Process(pid))
        return found


def _ancestors(pid: int, there: Mapping[int, Mapping[str, Any]]) -> Iterator[int]:
    while (pid := there[pid]["ppid"]) in there:
        yield pid


def node_type(raylet: psutil.Process) -> str:
    """What the provider calls its node."""
    return raylet.environ().get("RAY_NODE_TYPE_NAME", HEAD_TYPE)


@contextlib.contextmanager
def head(
    folder: Path, node_types: Mapping[str, Any] | None = None, *, autoscaler: int = 1
) -> Iterator[Head]:
    """A head of four CPUs; with node types one of none, whose autoscaler adds such nodes.

    Args:
        folder: for its log.
        node_types: as in a file of Ray's cluster launcher, without the head's.
        autoscaler: its version: 1, which `ray up` starts, or 2, which KubeRay does.
    """
    ports = [free_port() for _ in range(7)]
    address, gcs = f"http://127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}"
    env = {
        **os.environ, "HF_HUB_OFFLINE": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }  # fmt: skip
    for variable in ("PYTHONPATH", "RAY_ADDRESS"):
        env.pop(variable, None)
    arguments = ["--num-cpus=4"]
    if node_types is not None:
        config = folder / "autoscaler.json"
        config.write_text(json.dumps(_autoscaler(node_types, gcs)))
        arguments = ["--num-cpus=0", f"--autoscaling-config={config}"]
        env |= {
            "PYTHONPATH": str(ROOT), "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            # A node whose raylet was killed says so by its silence.
            "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",
        }  # fmt: skip
        if autoscaler == 2:
            env |= {
                "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            }  # fmt: skip
    log, scratch = (
        folder / "head.log",
        Path(tempfile.mkdtemp(prefix="llkd-")),
    )  # a short path: it holds sockets
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
             "--node-ip-address=127.0.0.1", f"--port={ports[0]}", "--dashboard-host=127.0.0.1",
             f"--dashboard-port={ports[1]}", f"--ray-client-server-port={ports[2]}",
             # Of their own: another Ray's agents may hold the usual ones.
             f"--dashboard-agent-listen-port={ports[3]}",
             f"--dashboard-agent-grpc-port={ports[4]}", f"--metrics-export-port={ports[5]}",
             f"--runtime-env-agent-port={ports[6]}", "--disable-usage-stats",
             f"--temp-dir={scratch}", *arguments],
            env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE
        while not answers(ports[1]):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield Head(address, gcs, env, process, node_types is not None)
    finally:
        _stop(process)
        shutil.rmtree(scratch, ignore_errors=True)


def _autoscaler(node_types: Mapping[str, Any], gcs: str) -> dict[str, Any]:
    """A configuration that makes nodes of processes of this machine."""
    types = {
        name: {"node_config": {}, "min_workers": 0, **settings}
        for name, settings in node_types.items()
    }
    types[HEAD_TYPE] = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "llkd",
        "max_workers": 8,
        "upscaling_speed": 8,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external", "module": f"{FakeMultiNodeProvider.__module__}.FakeMultiNodeProvider",
            "gcs_address": gcs, "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True, "foreground_node_launch": True,
            # For the second version.
            "launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "available_node_types": types,
        "head_node_type": HEAD_TYPE,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in _COMMANDS},
    }  # fmt: skip


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a head with all nodes that it has started."""
    for child in [*psutil.Process(process.pid).children(recursive=True), process]:
        with contextlib.suppress(psutil.Error):
            child.kill()
    process.wait()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
