"""torch's process group for a Ray that was started on this machine: no port beyond it.

torch's own rendezvous listens on every interface, so the workers of one machine meet in a file
instead, and talk over the loopback.
"""

import os
import tempfile
import uuid
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch.config import (
    TorchConfig,
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)


@dataclass
class LoopbackTorchConfig(TorchConfig):  # type: ignore[misc]
    """What `TorchTrainer(torch_config=...)` takes."""

    @property
    def backend_cls(self) -> type:
        """See TorchConfig."""
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        meeting = os.path.join(tempfile.gettempdir(), f"llkd-{uuid.uuid4().hex}")
        worker_group.execute(_use_loopback)
        worker_group.execute(_set_torch_distributed_env_vars)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    _setup_torch_process_group,
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
