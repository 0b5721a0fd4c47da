"""A torch process group on the loopback interface, for a local Ray.

The rendezvous of torch listens on all interfaces, so the workers use a file instead.
"""

import os
import tempfile
import uuid
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig

from llkd.cluster.ray_internals import torch_backend

_RAY = torch_backend()


@dataclass
class LoopbackTorchConfig(TorchConfig):  # type: ignore[misc]
    """For `TorchTrainer(torch_config=...)`."""

    @property
    def backend_cls(self) -> type:
        """See TorchConfig."""
        return _LoopbackBackend


class _LoopbackBackend(_RAY.base):  # type: ignore[misc,name-defined]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        meeting = os.path.join(tempfile.gettempdir(), f"llkd-{uuid.uuid4().hex}")
        worker_group.execute(_use_loopback)
        worker_group.execute(_RAY.set_environment)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    _RAY.set_up_group,
                    backend=backend_config.backend or ("nccl" if gpus > 0 else "gloo"),
                    world_rank=rank,
                    world_size=len(worker_group),
                    init_method=f"file://{meeting}",
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(len(worker_group))
            ]
        )


def _use_loopback() -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo" if os.path.exists("/sys/class/net/lo") else "lo0"
    os.environ["NCCL_SOCKET_IFNAME"] = os.environ["GLOO_SOCKET_IFNAME"]
