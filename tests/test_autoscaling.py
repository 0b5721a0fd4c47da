"""What is known of a cluster that adds nodes by itself, in this process."""

import json
import time
from dataclasses import asdict
from typing import Any

import pytest
import ray

from llkd import autoscaling, runtime, tasks
from llkd.errors import ResourceError


def status(launching: dict[str, int] | None = None, **nodes: int) -> bytes:
    """What Ray's monitor reports where these nodes of these types run, and others are begun."""
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
    from ray.experimental.internal_kv import _internal_kv_get

    limit = time.monotonic() + 60
    while not (reported := _internal_kv_get(autoscaling.STATUS_KEY)):
        assert time.monotonic() < limit, "Ray's monitor reports nothing"
        time.sleep(0.5)
    (name,) = json.loads(reported)["autoscaler_report"]["active_nodes"]
    assert name.startswith(autoscaling.READONLY_TYPE)
    assert not autoscaling.is_running()
    assert autoscaling.addable_nodes() == []


def scaling(
    monkeypatch: pytest.MonkeyPatch, now: list[dict[str, float]], addable: list[dict[str, float]]
) -> None:
    """A cluster with an autoscaler, these nodes now, and these that it says it can add."""
    monkeypatch.setenv(runtime.ADDRESS_VARIABLE, "10.0.0.1:6379")
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": n} for n in now])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"memory": 1.0})
    monkeypatch.setattr(autoscaling, "addable_nodes", lambda: addable)
    monkeypatch.setattr(autoscaling, "is_running", lambda: True)


HEAD: dict[str, Any] = {"CPU": 0, "memory": 2**34}


def test_what_no_node_has_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    scaling(monkeypatch, [HEAD], [])
    runtime.require_resources({"GPU": 1, "gpu_worker": 1}, "teacher.resources")
    monkeypatch.setattr(autoscaling, "is_running", lambda: False)
    with pytest.raises(ResourceError, match="teacher.resources asks for"):
        runtime.require_resources({"GPU": 1, "gpu_worker": 1}, "teacher.resources")


def test_gpus_that_may_come_are_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    scaling(monkeypatch, [HEAD], [])
    with pytest.raises(ResourceError, match=r"Set student.resources: \{GPU: 1, CPU: 1\}"):
        runtime.cluster_has_gpus("student.resources")
    scaling(monkeypatch, [HEAD, {"GPU": 1}], [])
    assert runtime.cluster_has_gpus("student.resources")
    scaling(monkeypatch, [HEAD], [{"CPU": 8}, {"GPU": 1}])
    assert runtime.cluster_has_gpus("student.resources")
    scaling(monkeypatch, [HEAD], [{"CPU": 8}])
    assert not runtime.cluster_has_gpus("student.resources")


def test_a_cluster_without_nodes_yet_is_given_work_for_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scaling(monkeypatch, [HEAD], [])
    assert tasks._fair_run(2560) == 10  # four tasks for each of 64 CPUs
    monkeypatch.setattr(autoscaling, "is_running", lambda: False)
    assert tasks._fair_run(2560) == 640


@pytest.mark.usefixtures("local_ray")
def test_an_actor_that_reserves_nothing_stays_here() -> None:
    @ray.remote(num_cpus=0)
    class Where:
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    where = Where.options(**runtime.here()).remote()  # type: ignore[attr-defined]
    assert ray.get(where.node.remote()) == ray.get_runtime_context().get_node_id()
    strategy = runtime.here()["scheduling_strategy"]
    assert not strategy.soft
    ray.kill(where)
