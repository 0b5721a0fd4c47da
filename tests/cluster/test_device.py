"""A GPU that Ray has reserved and torch cannot use is an error, not silent work on the CPU."""

import os
import subprocess
import sys

import pytest
import torch

from llkd.cluster.device import own_device
from tests.conftest import ROOT

SCRIPT = """
import ray
from llkd.cluster.device import own_device
from llkd.errors import ResourceError

def device():
    try:
        return str(own_device())
    except ResourceError as error:
        return str(error)

ray.init(num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
print(ray.get(ray.remote(device).options(num_cpus=1).remote()))
print(ray.get(ray.remote(device).options(num_gpus=1, num_cpus=0).remote()))
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="it takes a machine without a GPU")
def test_a_reserved_gpu_that_torch_cannot_use_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    without, with_gpu = done.stdout.splitlines()
    assert without == "cpu"
    assert "Ray has reserved the GPU 0 of this node, but torch" in with_gpu


def test_a_process_without_ray_takes_what_it_sees() -> None:
    assert own_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
