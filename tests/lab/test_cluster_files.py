"""The cluster files: as Ray itself reads them, and by the rules that Ray does not know."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llkd.config.load import load_config
from llkd.config.run import RunConfig
from llkd.errors import ConfigError
from llkd.lab import cluster_files
from llkd.lab.cluster_files import autoscaler_config, check, problems, read
from tests.conftest import ROOT

LAUNCHER = ("cluster.yaml", "jobs/clusters/gcp.yaml")
RAYJOB = "jobs/clusters/rayjob.yaml"
FILES = (*LAUNCHER, RAYJOB)
GPUS = {"m6i.xlarge": 0, "m6i.4xlarge": 0, "g6e.2xlarge": 1}
GPUS |= {"n2-standard-4": 0, "n2-standard-16": 0, "g2-standard-8": 1}
CPUS = {"m6i.4xlarge": 16, "g6e.2xlarge": 8, "n2-standard-16": 16, "g2-standard-8": 8}
"""Of the machine types that the files name."""

Change = Callable[[dict[str, Any]], object]


def filled(name: str) -> dict[str, Any]:
    """A file with its placeholders filled in."""
    return dict(yaml.safe_load((ROOT / name).read_text().replace("REPLACE", "mine")))


def run(*overrides: str) -> RunConfig:
    return load_config(str(ROOT / "jobs/configs/cluster-example.yaml"), list(overrides))


@pytest.mark.parametrize("name", FILES)
def test_a_file_fits_the_example_once_its_placeholders_are_filled_in(name: str) -> None:
    assert problems(filled(name), run()) == []
    left = problems(read(str(ROOT / name)), run())
    assert left
    assert all("still says REPLACE" in each for each in left)


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_reads_what_the_file_says(name: str) -> None:
    cluster = autoscaler_config(filled(name))
    assert cluster["available_node_types"]["head"]["max_workers"] == 0
    assert cluster["worker_setup_commands"] == filled(name)["setup_commands"]
    for group in cluster["available_node_types"].values():
        machine = group["node_config"].get("InstanceType") or group["node_config"]["machineType"]
        assert group["resources"].get("GPU", 0) == GPUS[machine]
        assert group["resources"]["CPU"] in (0, CPUS.get(machine))


def test_ray_reads_the_groups_of_the_rayjob() -> None:
    cluster = autoscaler_config(filled(RAYJOB))
    types = cluster["available_node_types"]
    assert cluster["idle_timeout_minutes"] == 10
    assert types["headgroup"]["resources"]["CPU"] == 0
    gpu, cpu = types["gpu-workers"], types["cpu-workers"]
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, 8)
    assert gpu["resources"] == {"CPU": 7, "GPU": 1, "memory": 48 * 2**30, "gpu_worker": 1}
    assert cpu["resources"] == {"CPU": 15, "memory": 56 * 2**30, "cpu_worker": 15}


def test_both_clouds_and_kubernetes_have_the_same_image_and_the_same_resources() -> None:
    images = {filled(name)["docker"]["image"] for name in LAUNCHER}
    assert images == set(
        re.findall(r"^FROM (\S+)$", (ROOT / "jobs/clusters/Dockerfile").read_text(), re.M)
    )
    names = [
        {key for group in cluster["available_node_types"].values() for key in group["resources"]}
        for cluster in (
            *(autoscaler_config(filled(name)) for name in LAUNCHER),
            autoscaler_config(filled(RAYJOB)),
        )
    ]
    assert all(each - {"memory"} == {"CPU", "GPU", "gpu_worker", "cpu_worker"} for each in names)


def test_the_rayjob_agrees_with_the_cluster_of_the_launcher() -> None:
    """The same groups of as many nodes, each a little smaller for what Kubernetes takes of it."""
    ours, theirs = (
        autoscaler_config(filled(name))["available_node_types"] for name in (RAYJOB, "cluster.yaml")
    )
    for name in ("gpu_worker", "cpu_worker"):
        mine, other = ours[name.replace("_worker", "-workers")], theirs[name]
        for limit in ("min_workers", "max_workers"):
            assert mine[limit] == other[limit]
        assert mine["resources"].get("GPU") == other["resources"].get("GPU")
        assert mine["resources"]["CPU"] == other["resources"]["CPU"] - 1
        assert 0 < mine["resources"][name] <= other["resources"][name]


def test_the_pods_of_the_rayjob_can_run_ray() -> None:
    file = filled(RAYJOB)
    workers = spec(file)["workerGroupSpecs"]
    pods = [pod(each) for each in (spec(file)["headGroupSpec"], *workers)]
    containers = [each["containers"][0] for each in pods]
    assert len({container["image"] for container in containers}) == 1
    for each, container in zip(pods, containers, strict=True):
        # Ray counts the limits.
        assert container["resources"]["requests"] == container["resources"]["limits"]
        # A pod has 64 MiB of shared memory otherwise, and Ray's object store lies there.
        (mount,) = container["volumeMounts"]
        (volume,) = each["volumes"]
        assert (mount["mountPath"], mount["name"]) == ("/dev/shm", volume["name"])
        assert volume["emptyDir"]["medium"] == "Memory"
        # Nodes with GPUs are often tainted so that other pods keep off.
        tolerated = [taint["key"] for taint in each.get("tolerations", [])]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == bool(tolerated)
    names = [file["metadata"]["name"], *(each["groupName"] for each in workers)]
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in names)
    assert "jobs/run.py" in file["spec"]["entrypoint"]
    assert all(each["minReplicas"] <= each["replicas"] <= each["maxReplicas"] for each in workers)


def types(file: dict[str, Any]) -> dict[str, Any]:
    return dict(file["available_node_types"])


LAUNCHER_BREAKS: dict[str, tuple[Change, str]] = {
    "schema": (lambda f: f.update(max_worker=3), "launcher refuses the file: .*max_worker"),
    "no provider": (lambda f: f.pop("provider"), "launcher refuses the file: KeyError"),
    "no such cloud": (lambda f: f["provider"].update(type="azur"), "Unsupported node provider: azur"),
    "no such head": (lambda f: f.update(head_node_type="boss"), "launcher refuses the file: .*head_node_type"),
    "min above max": (
        lambda f: types(f)["cpu_worker"].update(min_workers=9),
        r"cpu_worker: min_workers \(9\) is more than max_workers \(8\)",
    ),
    "too few in all": (
        lambda f: f.update(max_workers=15), r"max_workers \(15\) is less than .* \(16\)",
    ),
    "head takes work": (
        lambda f: types(f)["head"].update(resources={"CPU": 4}), r"head: resources must be \{CPU: 0\}",
    ),
    "head has a GPU": (
        lambda f: types(f)["head"].update(resources={"CPU": 0, "GPU": 1}), "head: resources must be",
    ),
    "no such resource": (
        lambda f: types(f)["gpu_worker"].update(resources={"CPU": 8, "GPU": 1}),
        r"teacher.resources asks for \{GPU: 1, CPU: 7, gpu_worker: 1\}, which no node type has",
    ),
    "too few nodes": (
        lambda f: types(f)["gpu_worker"].update(max_workers=3),
        "student.resources .* fits 3 times .* up to 4",
    ),
    "no token asked for": (
        lambda f: f["docker"].update(run_options=[]), "RAY_AUTH_MODE=token",
    ),
    "no token": (lambda f: f["file_mounts"].pop("~/.ray/auth_token"), "must copy ~/.ray/auth_token"),
    "open dashboard": (
        lambda f: f.update(head_start_ray_commands=["ray start --head --dashboard-host=0.0.0.0"]),
        "listens on all networks",
    ),
}  # fmt: skip


def spec(file: dict[str, Any]) -> dict[str, Any]:
    return dict(file["spec"])["rayClusterSpec"]  # type: ignore[no-any-return]


def group(file: dict[str, Any], number: int = 0) -> dict[str, Any]:
    return spec(file)["workerGroupSpecs"][number]  # type: ignore[no-any-return]


def pod(group: dict[str, Any]) -> dict[str, Any]:
    return group["template"]["spec"]  # type: ignore[no-any-return]


RAYJOB_BREAKS: dict[str, tuple[Change, str]] = {
    "another kind": (lambda f: f.update(kind="RayCluster"), "must be a RayJob of ray.io/v1"),
    "no cluster": (lambda f: f["spec"].pop("rayClusterSpec"), "autoscaler refuses the file: KeyError"),
    "cluster left": (
        lambda f: f["spec"].pop("shutdownAfterJobFinishes"), "shutdownAfterJobFinishes must be true",
    ),
    "no version": (lambda f: spec(f).pop("rayVersion"), "rayVersion is None"),
    "another version": (lambda f: spec(f).update(rayVersion="2.59.0"), "rayVersion is 2.59.0"),
    "no token": (lambda f: spec(f).pop("authOptions"), "authOptions.mode must be token"),
    "no autoscaling": (lambda f: spec(f).pop("enableInTreeAutoscaling"), "groups stay at"),
    "head takes work": (
        lambda f: spec(f)["headGroupSpec"].update(rayStartParams={}), "num-cpus: '0'",
    ),
    "replicas": (
        lambda f: group(f).update(minReplicas=9), r"min_workers \(9\) is more than max_workers \(8\)",
    ),
    "no GPU": (
        lambda f: [
            pod(group(f))["containers"][0]["resources"][kind].pop("nvidia.com/gpu")
            for kind in ("limits", "requests")
        ],
        "teacher.resources .* no node type has",
    ),
    "no containers": (lambda f: pod(group(f)).pop("containers"), "autoscaler refuses the file: .*containers"),
    "unreadable resources": (
        lambda f: group(f).update(rayStartParams={"resources": "gpu_worker"}),
        "autoscaler refuses the file",
    ),
    "no such resource": (
        lambda f: group(f).update(rayStartParams={}), "teacher.resources .* no node type has",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        *((name, each) for name in LAUNCHER for each in LAUNCHER_BREAKS),
        *((RAYJOB, e) for e in RAYJOB_BREAKS),
    ],
)
def test_a_broken_file_is_reported(name: str, broken: str) -> None:
    change, message = (RAYJOB_BREAKS if name == RAYJOB else LAUNCHER_BREAKS)[broken]
    file = filled(name)
    change(file)
    found = problems(file, run())
    assert any(re.search(message, each, re.S) for each in found), found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.resources=null", "teacher.resources is not set"),
        ("student.resources=null", "student.resources is not set"),
        (
            "predict.resources={GPU: 2}",
            r"predict.resources asks for \{GPU: 2\}, which no node type",
        ),
        ("teacher.replicas=[1,9]", "teacher.resources .* fits 8 times .* up to 9"),
        (
            "teacher={model: s3://bucket/teacher, replicas: [1, 5], nodes: 2, "
            "resources: {GPU: 1, CPU: 7, gpu_worker: 1}, engine_args: {tensor_parallel_size: 2}}",
            "teacher.resources .* fits 8 times .* up to 10",
        ),
        ("student.workers=[2,16]", "student.resources .* fits 8 times .* up to 16"),
    ],
)
def test_a_run_that_requests_too_much_is_reported(override: str, message: str) -> None:
    (found,) = problems(filled("cluster.yaml"), run(override))
    assert re.search(message, found)


def test_small_actors_share_a_node() -> None:
    # 16 CPUs hold five of 3: 8 nodes of 16 and 8 of 8 CPUs have 8 * 5 + 8 * 2 places.
    asked = run("predict.resources={CPU: 3}", "predict.replicas=[1,56]")
    assert problems(filled("cluster.yaml"), asked) == []
    more = run("predict.resources={CPU: 3}", "predict.replicas=[1,57]")
    assert "fits 56 times" in problems(filled("cluster.yaml"), more)[0]


def test_all_problems_are_reported_at_once_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**filled("cluster.yaml"), "max_workers": 2}))
    with pytest.raises(ConfigError, match=r"mine.yaml needs changes:\n- max_workers.*\n- teacher"):
        check(str(file), run("teacher.resources=null"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "cannot be read as YAML"), ("a: 1", "neither a file of Ray's cluster launcher")],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "other.yaml"
    file.write_text(text)
    for path, said in ((file, message), (tmp_path / "none.yaml", "cannot be read")):
        with pytest.raises(ConfigError, match=said):
            check(str(path), run())


def test_the_roles_are_those_that_the_cluster_names() -> None:
    roles = yaml.safe_load((ROOT / "jobs/clusters/aws-roles.yaml").read_text())["Resources"]
    made = {
        each["Properties"]["InstanceProfileName"]
        for each in roles.values()
        if each["Type"] == "AWS::IAM::InstanceProfile"
    }
    named = {
        group["node_config"]["IamInstanceProfile"]["Name"]
        for group in types(filled("cluster.yaml")).values()
    }
    assert made == named


def test_what_is_copied_to_the_nodes_is_there() -> None:
    for name in LAUNCHER:
        for target, source in filled(name)["file_mounts"].items():
            assert source == target or (ROOT / source).exists()
    assert cluster_files.PLACEHOLDER in (ROOT / "cluster.yaml").read_text()
