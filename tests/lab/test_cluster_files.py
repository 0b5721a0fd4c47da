"""The files for clusters: Ray's own reading of them, and rules that it does not know.

No CRD of KubeRay comes with a package, so that `jobs/clusters/rayjob.yaml` is held against rules that were
written by hand from its field reference; what Ray's autoscaler makes of it is Ray's own code.
"""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llkd.config.load import load_config
from llkd.config.run import RunConfig
from llkd.errors import ConfigError
from llkd.lab import cluster_files, rayjob
from llkd.lab.cluster_files import check, prepared, problems, read
from tests.conftest import ROOT

LAUNCHER = ("cluster.yaml", "jobs/clusters/gcp.yaml")
FILES = (*LAUNCHER, "jobs/clusters/rayjob.yaml")
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
    cluster = prepared(filled(name))
    assert cluster["available_node_types"]["head"]["max_workers"] == 0
    assert cluster["worker_setup_commands"] == filled(name)["setup_commands"]
    for group in cluster["available_node_types"].values():
        machine = group["node_config"].get("InstanceType") or group["node_config"]["machineType"]
        assert group["resources"].get("GPU", 0) == GPUS[machine]
        assert group["resources"]["CPU"] in (0, CPUS.get(machine))


def test_ray_reads_the_groups_of_the_rayjob() -> None:
    cluster = rayjob.as_cluster(filled("jobs/clusters/rayjob.yaml"))
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
            *(prepared(filled(name)) for name in LAUNCHER),
            rayjob.as_cluster(filled("jobs/clusters/rayjob.yaml")),
        )
    ]
    assert all(each - {"memory"} == {"CPU", "GPU", "gpu_worker", "cpu_worker"} for each in names)


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


@pytest.mark.parametrize("name", LAUNCHER)
@pytest.mark.parametrize("broken", LAUNCHER_BREAKS)
def test_a_broken_launcher_file_is_told(name: str, broken: str) -> None:
    change, message = LAUNCHER_BREAKS[broken]
    expect(name, change, message)


def spec(file: dict[str, Any]) -> dict[str, Any]:
    return dict(file["spec"])["rayClusterSpec"]  # type: ignore[no-any-return]


def group(file: dict[str, Any], number: int = 0) -> dict[str, Any]:
    return spec(file)["workerGroupSpecs"][number]  # type: ignore[no-any-return]


def container(file: dict[str, Any], number: int = 0) -> dict[str, Any]:
    return group(file, number)["template"]["spec"]["containers"][0]  # type: ignore[no-any-return]


RAYJOB_BREAKS: dict[str, tuple[Change, str]] = {
    "another kind": (lambda f: f.update(kind="RayCluster"), "must be a RayJob of ray.io/v1"),
    "name": (lambda f: f["metadata"].update(name="LLKD_1"), "metadata.name is 'LLKD_1'.*DNS-1123"),
    "group's name": (lambda f: group(f).update(groupName="gpu_"), "groupName is 'gpu_'.*DNS-1123"),
    "container's name": (lambda f: container(f).update(name="a" * 64), "container name .*DNS-1123"),
    "field of the job": (lambda f: f["spec"].update(ttl=1), "spec: there is no field ttl"),
    "field of the cluster": (lambda f: spec(f).update(auth={}), "there is no field auth"),
    "field of the head": (
        lambda f: spec(f)["headGroupSpec"].update(replicas=1), "headGroupSpec: .* no field replicas",
    ),
    "field of a group": (lambda f: group(f).update(minReplica=0), "gpu-workers: .* minReplica"),
    "entrypoint": (lambda f: f["spec"].update(entrypoint="sleep 1"), "must run a job of LLKD"),
    "cluster left": (
        lambda f: f["spec"].pop("shutdownAfterJobFinishes"), "shutdownAfterJobFinishes must be true",
    ),
    "no version": (lambda f: spec(f).pop("rayVersion"), "rayVersion is None"),
    "another version": (lambda f: spec(f).update(rayVersion="2.59.0"), "rayVersion is 2.59.0"),
    "no token": (lambda f: spec(f).pop("authOptions"), "authOptions.mode must be token"),
    "no autoscaling": (lambda f: spec(f).pop("enableInTreeAutoscaling"), "groups stay at"),
    "head takes work": (
        lambda f: spec(f)["headGroupSpec"].update(rayStartParams={}), "num-cpus must be '0'",
    ),
    "two images": (lambda f: container(f).update(image="other:1"), "all groups must have one image"),
    "replicas": (
        lambda f: group(f).update(replicas=9), r"minReplicas \(0\) <= replicas \(9\) <= maxReplicas",
    ),
    "no GPU": (
        lambda f: container(f)["resources"]["limits"].pop("nvidia.com/gpu"),
        "gpu-workers: limits must have nvidia.com/gpu",
    ),
    "taint": (
        lambda f: group(f)["template"]["spec"].pop("tolerations"), "tolerations must have the key",
    ),
    "unlike limits": (
        lambda f: container(f, 1)["resources"]["requests"].update(cpu="2"),
        "cpu-workers: cpu must be requested and limited alike",
    ),
    "shared memory": (
        lambda f: group(f)["template"]["spec"].update(volumes=[]), "/dev/shm must be a volume",
    ),
    "no containers": (
        lambda f: group(f)["template"]["spec"].pop("containers"), "missing or misplaced: .*containers",
    ),
    "unreadable resources": (
        lambda f: group(f).update(rayStartParams={"resources": "gpu_worker"}),
        "autoscaler cannot read spec.rayClusterSpec",
    ),
    "no such resource": (
        lambda f: group(f).update(rayStartParams={}), "teacher.resources .* no node type has",
    ),
}  # fmt: skip


@pytest.mark.parametrize("broken", RAYJOB_BREAKS)
def test_a_broken_rayjob_is_told(broken: str) -> None:
    change, message = RAYJOB_BREAKS[broken]
    expect("jobs/clusters/rayjob.yaml", change, message)


def expect(name: str, change: Change, message: str) -> None:
    """That a change of a good file is told, by this message among others."""
    file = copy.deepcopy(filled(name))
    change(file)
    found = problems(file, run())
    assert any(re.search(message, each, re.S) for each in found), found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.resources=null", "teacher.resources is not given"),
        ("student.resources=null", "student.resources is not given"),
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
def test_a_run_that_asks_for_too_much_is_told(override: str, message: str) -> None:
    (found,) = problems(filled("cluster.yaml"), run(override))
    assert re.search(message, found)


def test_small_actors_share_a_node() -> None:
    # 16 CPUs hold five of 3: 8 nodes of 16 and 8 of 8 CPUs have 8 * 5 + 8 * 2 places.
    asked = run("predict.resources={CPU: 3}", "predict.replicas=[1,56]")
    assert problems(filled("cluster.yaml"), asked) == []
    more = run("predict.resources={CPU: 3}", "predict.replicas=[1,57]")
    assert "fits 56 times" in problems(filled("cluster.yaml"), more)[0]


def test_all_that_is_wrong_is_told_at_once_with_the_file(tmp_path: Path) -> None:
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
