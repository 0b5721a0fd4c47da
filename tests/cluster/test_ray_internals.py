"""Private interfaces of Ray: used in one file only, and tested against the installed Ray."""

import ast
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
import yaml

from llkd.cluster import ray_internals
from llkd.cluster.connection import ACTOR_CLASSES
from tests.conftest import ROOT
from tests.test_layout import MODULES

PRIVATE = (
    "ray.autoscaler", "ray.core", "ray.dashboard", "ray.experimental", "ray.gcs_utils",
    "ray.train.v2", "ray.worker",
)  # fmt: skip
"""Internal modules of Ray whose names do not begin with `_`."""


def private_names(path: Path) -> list[str]:
    """Private names of Ray that a file imports or accesses as attributes."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names.append(ast.unparse(node))
    return [
        name
        for name in names
        if name.startswith("ray.")
        and (name.startswith(PRIVATE) or any(re.match("_[^_]", part) for part in name.split(".")))
    ]


def test_only_one_file_imports_private_modules_of_ray() -> None:
    found = {module: private_names(path) for module, path in MODULES.items()}
    assert len(found.pop(ray_internals.__name__)) >= 10
    assert {module: names for module, names in found.items() if names} == {}


@pytest.mark.usefixtures("local_ray")
def test_a_local_ray_declares_no_node_types() -> None:
    assert ray_internals.declared_node_types() == []
    assert not ray_internals.is_autoscaler_v2()


@pytest.mark.usefixtures("local_ray")
def test_the_status_is_a_report_of_the_monitor() -> None:
    while (status := ray_internals.autoscaler_status()) is None:
        time.sleep(0.1)  # the monitor reports every few seconds
    assert "autoscaler_report" in json.loads(status)


@pytest.mark.usefixtures("local_ray")
def test_the_actors_of_a_job_have_a_state_and_a_class() -> None:
    @ray.remote(num_cpus=0)
    class Worker:
        def ready(self) -> bool:
            return True

    job = ray.get_runtime_context().get_job_id()
    name = "an actor of the test"
    worker = Worker.options(name=name).remote()  # type: ignore[attr-defined]
    assert ray.get(worker.ready.remote())

    def states() -> list[str]:
        found = [actor for actor in ray_internals.actors_of_job(job) if actor["Name"] == name]
        assert all(actor["ActorClassName"].endswith("Worker") for actor in found)
        return [actor["State"] for actor in found]

    assert states() == ["ALIVE"]
    ray.kill(worker)
    while states() == ["ALIVE"]:
        time.sleep(0.1)
    assert states() == ["DEAD"]


def test_ray_data_and_ray_train_call_their_actors_so() -> None:
    from ray.data._internal.execution.operators import actor_pool_map_operator
    from ray.train.v2._internal.execution.worker_group import worker

    assert actor_pool_map_operator._MapWorker.__name__.endswith(ACTOR_CLASSES["replica"])
    assert worker.RayTrainWorker.__name__ == ACTOR_CLASSES["worker"]


@pytest.mark.usefixtures("local_ray")
def test_the_running_jobs_are_those_of_the_cluster() -> None:
    jobs = ray_internals.running_jobs()
    assert ray.get_runtime_context().get_job_id() in jobs
    assert all(isinstance(entrypoint, str) for entrypoint in jobs.values())


@pytest.mark.usefixtures("local_ray")
def test_a_driver_takes_its_environment_from_the_variable() -> None:
    code = (
        "import ray; ray.init(log_to_driver=False, logging_level='ERROR');"
        "print(ray.get_runtime_context().runtime_env['env_vars']['KEY'])"
    )
    config = json.dumps({"runtime_env": {"env_vars": {"KEY": "value"}}})
    variables = {
        ray_internals.JOB_CONFIG_VARIABLE: config,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, cwd=ROOT, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["value"]


def test_a_launcher_file_gets_the_defaults_of_ray() -> None:
    file = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    config = ray_internals.launcher_config(file)
    assert config["available_node_types"]["head"]["max_workers"] == 0
    assert "worker_setup_commands" in config
    with pytest.raises(Exception, match="max_worker"):
        ray_internals.launcher_config({**file, "max_worker": 3})


def test_a_ray_cluster_of_kubernetes_becomes_node_types() -> None:
    file = yaml.safe_load((ROOT / "jobs/clusters/rayjob.yaml").read_text())
    config = ray_internals.kuberay_config(file["spec"]["rayClusterSpec"])
    assert config["head_node_type"] == "headgroup"
    assert {"gpu-workers", "cpu-workers"} < config["available_node_types"].keys()


def test_the_backend_of_torch_starts_a_process_group() -> None:
    import inspect

    from ray.train.torch import TorchConfig

    backend = ray_internals.torch_backend()
    assert TorchConfig().backend_cls is backend.base
    assert inspect.signature(backend.set_environment).parameters.keys() == set()
    assert inspect.signature(backend.set_up_group).parameters.keys() >= {
        "backend", "world_rank", "world_size", "init_method", "timeout_s",
    }  # fmt: skip
