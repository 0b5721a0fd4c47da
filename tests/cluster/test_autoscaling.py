"""Autoscaling clusters, simulated in this process."""

import json
import time
from dataclasses import asdict
from typing import Any

import pytest
import ray

from llkd.cluster import autoscaling, connection, ray_internals, shard_tasks
from llkd.cluster.environment import ADDRESS_VARIABLE
from llkd.errors import ResourceError
from tests.helpers import wait_until


def status(launching: dict[str, int] | None = None, **nodes: int) -> bytes:
    """The report of Ray's monitor while these numbers of nodes run by type, and others are launching."""
    from ray.autoscaler._private.autoscaler import AutoscalerSummary

    report = AutoscalerSummary(
        active_nodes=nodes,
        idle_nodes=None,
        pending_nodes=[],
        pending_launches=launching or {},
        failed_nodes=[],
    )
    return json.dumps({"autoscaler_report": asdict(report)}).encode()


def test_a_monitor_that_knows_node_types_adds_nodes() -> None:
    assert autoscaling.adds_nodes(status(head=1))
    assert autoscaling.adds_nodes(status(head=1, gpu_worker=2))
    assert autoscaling.adds_nodes(status({"gpu_worker": 1}))
    assert not autoscaling.adds_nodes(status(node_f00=1, node_f01=1))
    assert not autoscaling.adds_nodes(status())
    assert not autoscaling.adds_nodes(b'{"autoscaler_report": null}')
    assert not autoscaling.adds_nodes(None)


@pytest.mark.usefixtures("local_ray")
def test_the_report_of_a_plain_ray_is_that_of_one_that_adds_none() -> None:
    def reported() -> dict[str, Any] | None:
        status = ray_internals.autoscaler_status()
        return json.loads(status).get("autoscaler_report") if status else None

    wait_until(lambda: reported() is not None)
    (name,) = reported()["active_nodes"]  # type: ignore[index]
    assert name.startswith(autoscaling.READONLY_TYPE)
    assert not autoscaling.is_running()
    assert autoscaling.addable_nodes() == []


def scaling(
    monkeypatch: pytest.MonkeyPatch, now: list[dict[str, float]], addable: list[dict[str, float]]
) -> None:
    """Simulate a cluster with an autoscaler, with its nodes and the nodes that it can add."""
    monkeypatch.setenv(ADDRESS_VARIABLE, "10.0.0.1:6379")
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": n} for n in now])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"memory": 1.0})
    monkeypatch.setattr(autoscaling, "addable_nodes", lambda: addable)
    monkeypatch.setattr(autoscaling, "is_running", lambda: True)


HEAD: dict[str, Any] = {"CPU": 0, "memory": 2**34}


def test_what_no_node_has_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    scaling(monkeypatch, [HEAD], [])
    connection.require_resources({"GPU": 1, "gpu_worker": 1}, "teacher.resources")
    monkeypatch.setattr(autoscaling, "is_running", lambda: False)
    with pytest.raises(ResourceError, match="teacher.resources asks for"):
        connection.require_resources({"GPU": 1, "gpu_worker": 1}, "teacher.resources")


def test_gpus_that_may_come_are_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    scaling(monkeypatch, [HEAD], [])
    with pytest.raises(ResourceError, match=r"Set student.resources: \{GPU: 1, CPU: 1\}"):
        connection.cluster_has_gpus("student.resources")
    scaling(monkeypatch, [HEAD, {"GPU": 1}], [])
    assert connection.cluster_has_gpus("student.resources")
    scaling(monkeypatch, [HEAD], [{"CPU": 8}, {"GPU": 1}])
    assert connection.cluster_has_gpus("student.resources")
    scaling(monkeypatch, [HEAD], [{"CPU": 8}])
    assert not connection.cluster_has_gpus("student.resources")


def test_a_cluster_without_nodes_yet_is_given_work_for_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scaling(monkeypatch, [HEAD], [])
    assert shard_tasks._fair_length(2560) == 10  # four tasks for each of 64 CPUs
    monkeypatch.setattr(autoscaling, "is_running", lambda: False)
    assert shard_tasks._fair_length(2560) == 640


@pytest.mark.usefixtures("local_ray")
def test_an_actor_that_reserves_nothing_stays_here() -> None:
    @ray.remote(num_cpus=0)
    class Where:
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    where = Where.options(**connection.here()).remote()  # type: ignore[attr-defined]
    assert ray.get(where.node.remote()) == ray.get_runtime_context().get_node_id()
    strategy = connection.here()["scheduling_strategy"]
    assert not strategy.soft
    ray.kill(where)


@pytest.mark.usefixtures("local_ray")
def test_as_many_nodes_are_asked_for_as_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.util.placement_group import placement_group_table

    monkeypatch.setattr(autoscaling, "POLL_SECONDS", 0.05)
    wanted = 3
    whole = [{"no_such_node": 1.0}, {"no_such_node": 1.0, "CPU": 0.5}]
    with autoscaling.demand(whole, lambda: wanted):
        wait_until(lambda: pending() == 3)
        groups = placement_group_table().values()
        asked = [group["bundles"] for group in groups if group["state"] == "PENDING"]
        assert asked == [dict(enumerate(whole))] * 3
        wanted = 1
        wait_until(lambda: pending() == 1)
    wait_until(lambda: pending() == 0)


@pytest.mark.usefixtures("local_ray")
def test_what_has_a_node_is_given_back_and_not_asked_for_again_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(autoscaling, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(autoscaling, "CLAIM_SECONDS", 1e9)
    before, returned = len(states()), states().count("REMOVED")
    with autoscaling.demand(
        [{"memory": 1}], lambda: 1
    ):  # which every node has, whatever runs there
        wait_until(lambda: states().count("REMOVED") > returned)
        time.sleep(1)
        assert len(states()) == before + 1
        monkeypatch.setattr(autoscaling, "CLAIM_SECONDS", 0.0)
        wait_until(lambda: len(states()) > before + 1)


def states() -> list[str]:
    """The states of all reservations so far."""
    from ray.util.placement_group import placement_group_table

    return [group["state"] for group in placement_group_table().values()]


def pending() -> int:
    """Reservations that wait for a node."""
    return states().count("PENDING")
