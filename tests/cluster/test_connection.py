"""The resources of a local Ray, and access to it."""

import contextlib
import os
import subprocess
import sys

import pytest
import ray

from llkd.cluster import connection
from llkd.errors import ResourceError
from tests.conftest import ROOT, SilentTracker

pytestmark = pytest.mark.usefixtures("local_ray")


def test_resources_become_ray_options() -> None:
    assert connection.options_of({"CPU": 2, "GPU": 1, "memory": 5.0, "tpu_host": 1}) == {
        "num_cpus": 2, "num_gpus": 1, "memory": 5.0, "resources": {"tpu_host": 1},
    }  # fmt: skip


def test_impossible_resources_name_what_there_is() -> None:
    connection.require_resources({"CPU": 4}, "x")
    with pytest.raises(ResourceError, match=r"student.resources asks for \{CPU: 5\}.*\(CPU: 4\)"):
        connection.require_resources({"CPU": 5}, "student.resources")


def test_actors_that_fit_beside_each_other_by_all_resources() -> None:
    nodes: list[dict[str, float]] = [{"CPU": 8, "GPU": 2}, {"CPU": 1, "GPU": 4}, {"CPU": 4}]
    assert connection.room_for(nodes, {"CPU": 1}) == 13
    assert connection.room_for(nodes, {"CPU": 1, "GPU": 1}) == 3
    assert connection.room_for(nodes, {"GPU": 0.5}) == 12


def test_too_few_nodes_are_told_with_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[connection.Resources] = [{"CPU": 8, "GPU": 2}, {"CPU": 8}, {"CPU": 8, "GPU": 3}]
    monkeypatch.setattr(connection, "nodes", lambda: there)
    connection.require_resources({"GPU": 2}, "teacher.resources", 2)
    with pytest.raises(
        ResourceError,
        match=r"teacher.resources asks for \{GPU: 2\} on each of 3 nodes \(teacher.nodes\), and this "
        r"cluster has room for 2 of them \(CPU: 8, GPU: 2; ",
    ):
        connection.require_resources({"GPU": 2}, "teacher.resources", 3)
    monkeypatch.setattr(connection, "autoscales", lambda: True)
    connection.require_resources({"GPU": 2}, "teacher.resources", 3)


def test_who_does_not_know_the_token_is_not_let_in() -> None:
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    channel = grpc.insecure_channel(ray.get_runtime_context().gcs_address)
    stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
    request = gcs_service_pb2.GetAllNodeInfoRequest()

    def ask(token: str | None) -> int:
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        return len(stub.GetAllNodeInfo(request, metadata=metadata, timeout=60).node_info_list)

    assert ask(os.environ["RAY_AUTH_TOKEN"]) == 1
    for wrong in (None, "0" * 64):
        with pytest.raises(grpc.RpcError) as caught:
            ask(wrong)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "module", ["llkd.cluster.shard_tasks", "llkd.cluster.progress", "llkd.pipeline"]
)
def test_whatever_is_imported_first_ray_keeps_to_the_loopback(module: str) -> None:
    code = f"import {module}, ray._private.ray_constants as c; assert not c.ENABLE_RAY_CLUSTER"
    names = ("RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    env = {name: value for name, value in os.environ.items() if name not in names}
    subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, check=True)


def test_a_ray_that_is_started_here_has_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setattr(ray, "init", lambda **arguments: None)
    assert not connection.connect()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize(("failures", "tries"), [(2, 3), (3, 3)])
def test_a_busy_machine_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, failures: int, tries: int
) -> None:
    begun: list[int] = []

    def start(**arguments: object) -> None:
        begun.append(1)
        if len(begun) <= failures:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    outcome = contextlib.nullcontext() if failures < tries else pytest.raises(ResourceError)
    with outcome:
        connection.connect()
    assert len(begun) == tries


def test_the_silent_tracker_answers_like_the_real_one(tracker: SilentTracker) -> None:
    from llkd.cluster.progress import ProgressTracker

    for name in ("begin", "end", "update", "note", "missing", "shard", "epoch"):
        assert hasattr(ProgressTracker.__ray_metadata__.modified_class, name)  # type: ignore[attr-defined]
        getattr(tracker, name).remote("x")
    assert len(tracker.calls) == 7
