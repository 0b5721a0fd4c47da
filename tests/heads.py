"""Head nodes of Ray clusters on this machine, with a job server, a token, and nodes that come and go.

Nothing here gives up after a time: a wait ends when its event comes, or fails when it cannot come
any more. The time limit of the test is the only other end.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FakeMultiNodeProvider,
)

from tests.conftest import ROOT

START_ATTEMPTS = 5
PATIENCE = 400
"""Seconds after which a process that does not answer is taken for dead."""

HEAD_TYPE = "ray.head.default"
"""The provider's name for it."""

_COMMANDS = (
    "cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands",
    "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip


MARK = "LLKD_TEST_PROCESSES"
"""Environment variable of processes that must not outlive a block; see `reaped`."""

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
"""States of jobs that do not change any more."""


@contextlib.contextmanager
def reaped() -> Iterator[dict[str, str]]:
    """An environment for processes which, with all that they start, are killed at the end of the
    block, whoever their parent is by then."""
    mark = uuid.uuid4().hex
    try:
        yield {**os.environ, MARK: mark}
    finally:
        while found := [p for p in psutil.process_iter() if _has(p, mark)]:
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(found, timeout=1)


def _has(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark  # that of a zombie cannot be read
    except psutil.Error:
        return False


def wait_until(condition: Callable[[], bool], possible: Callable[[], bool] = lambda: True) -> None:
    """Poll until a condition holds.

    Raises:
        AssertionError: it does not hold, and is not possible any more.
    """
    while not condition():
        assert possible() or condition()
        time.sleep(0.1)


@dataclass(frozen=True)
class Head:
    """A running head node."""

    address: str
    """Of the dashboard and the job server."""
    gcs: str
    """host:port of Ray itself."""
    env: dict[str, str]
    """The environment of its clients, with the token."""
    process: subprocess.Popen[bytes]
    grows: bool
    """Whether it has an autoscaler."""

    def submit(
        self, *arguments: object, name: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of jobs/run.py, waited for unless it has a name.

        The code is uploaded only where there is one node: nodes of the same machine share the
        folder for such code, and delete it when they go.
        """
        options = ["--no-wait", "--submission-id", name] if name else []
        if not self.grows:
            options += ["--working-dir", str(ROOT)]
        job = ROOT / "jobs/run.py" if self.grows else "jobs/run.py"
        while True:  # the head answers some seconds before it can run jobs
            done = self.job("submit", *options, "--", sys.executable, job, *arguments)
            if "No available agent" not in done.stderr:
                return done
            time.sleep(1)

    def job(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """`ray job ...`."""
        command, *rest = map(str, arguments)
        return subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "job", command, "--address",
             self.address, *rest],
            env=self.env, cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip

    def ask(self, path: str, method: str = "GET") -> Any:
        """The answer of the job server.

        Raises:
            OSError: it cannot be reached.
        """
        request = urllib.request.Request(
            f"{self.address}/api/{path}", method=method,
            headers={"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def is_alive(self) -> bool:
        """Whether its process runs and its job server answers."""
        if self.process.poll() is not None:
            return False
        with contextlib.suppress(OSError):
            self.ask("version")
            return True
        return False

    def status(self, name: str) -> str:
        """The state of a job, one of ENDED if it has ended."""
        return str(self.ask(f"jobs/{name}")["status"])

    def wait_for_job(self, name: str, condition: Callable[[], bool]) -> None:
        """Poll until a condition holds that only a running job can bring about."""
        with contextlib.suppress(AssertionError):
            wait_until(condition, lambda: self.status(name) not in ENDED)
            return
        raise AssertionError(f"{self.status(name)}: {self.job('logs', name).stdout}")

    def stop_jobs(self) -> None:
        """Stop all jobs that run, and wait until they have ended."""

        def running() -> list[str]:
            jobs = [job for job in self.ask("jobs/") if job["status"] not in ENDED]
            return [job["submission_id"] for job in jobs if job["submission_id"]]

        for name in running():
            self.ask(f"jobs/{name}/stop", "POST")
        wait_until(lambda: not running(), self.is_alive)

    def autoscaler(self) -> int:
        """The version of the running autoscaler."""
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
        """The running raylets of a node type."""
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
            there: `ppid` and `name` of all processes of this machine, by process id.
        """
        found = []
        for pid, info in there.items():
            above = list(_ancestors(pid, there))
            # A process that a raylet starts has the name of its parent for a moment.
            forked = bool(above) and there[above[0]]["name"] == "raylet"
            if info["name"] == "raylet" and not forked and self.process.pid in above:
                with contextlib.suppress(psutil.Error):
                    found.append(psutil.Process(pid))
        return found


def _ancestors(pid: int, there: Mapping[int, Mapping[str, Any]]) -> Iterator[int]:
    while (pid := there[pid]["ppid"]) in there:
        yield pid


def node_type(raylet: psutil.Process) -> str:
    """The provider's name for the type of a raylet's node."""
    return raylet.environ().get("RAY_NODE_TYPE_NAME", HEAD_TYPE)


@contextlib.contextmanager
def head(
    folder: Path, node_types: Mapping[str, Any] | None = None, *, autoscaler: int = 1
) -> Iterator[Head]:
    """A head of four CPUs; with node types, a head without CPUs whose autoscaler adds such nodes.
    All of its processes end with the block.

    Args:
        folder: for its log.
        node_types: as in a file of Ray's cluster launcher, without the head's.
        autoscaler: its version: 1, which `ray up` starts, or 2, which KubeRay does.
    """
    for attempt in range(1, START_ATTEMPTS + 1):
        scratch = Path(tempfile.mkdtemp(prefix="llkd-"))  # a short path: it holds sockets
        try:
            with reaped() as environment:
                try:
                    started = _start(folder, scratch, environment, node_types, autoscaler)
                except SlowMachineError:
                    if attempt == START_ATTEMPTS:
                        raise
                    continue
                yield started
                return
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


class SlowMachineError(Exception):
    """Ray gave up on starting a node: it allows each 30 seconds, whatever the machine does beside."""


class SharedHead:
    """A head that several tests use: checked before each use, and replaced if it does not answer."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._started = folder, 0
        self._stack = contextlib.ExitStack()
        self._head: Head | None = None

    def get(self) -> Head:
        """A head that answers and runs no job."""
        with contextlib.suppress(OSError, AssertionError):
            if self._head is not None and self._head.is_alive():
                self._head.stop_jobs()
                return self._head
        self.close()
        self._started += 1
        folder = self._folder / str(self._started)
        folder.mkdir()
        self._head = self._stack.enter_context(head(folder))
        return self._head

    def close(self) -> None:
        """End the head, if there is one."""
        self._head = None
        self._stack.close()


def _start(
    folder: Path,
    scratch: Path,
    environment: Mapping[str, str],
    node_types: Mapping[str, Any] | None,
    autoscaler: int,
) -> Head:
    """Start a head, and wait until its job server listens."""
    ports = free_ports(7)
    address, gcs = f"http://127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}"
    env = {
        **environment, "HF_HUB_OFFLINE": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
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
            # A node whose raylet was killed is noticed by its silence.
            "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",
        }  # fmt: skip
        if autoscaler == 2:
            env |= {
                "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            }  # fmt: skip
    log = folder / "head.log"
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
    # The dashboard may answer before Ray gives up on the node.
    while not ("Ray runtime started" in log.read_text() and answers(ports[1])):
        if process.poll() is not None and "timed out during startup" in log.read_text():
            raise SlowMachineError(log.read_text())
        assert process.poll() is None, log.read_text()
        time.sleep(0.5)
    return Head(address, gcs, env, process, node_types is not None)


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
        # Ray Data notices a new node within 20 seconds: until then it is idle.
        "idle_timeout_minutes": 0.75,
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


def free_ports(count: int) -> list[int]:
    """Different ports of this machine that are not in use."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def free_port() -> int:
    """A port of this machine that is not in use."""
    return free_ports(1)[0]


def answers(port: int) -> bool:
    """Whether a process listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
