"""A Ray cluster of several nodes on this machine, for fault injection."""

from typing import Any

NODES, NODE_CPUS = 3, 2
"""Worker nodes beside the head, and CPUs of each."""


class LocalCluster:
    """Several Ray nodes on this machine, all on the loopback interface."""

    def __init__(self, nodes: int = NODES) -> None:
        from ray.cluster_utils import Cluster

        self._node = {"num_cpus": NODE_CPUS, "object_store_memory": 80 << 20}
        self._cluster = Cluster(
            initialize_head=True, head_node_args={**self._node, "include_dashboard": False}
        )
        for _ in range(nodes):
            self._cluster.add_node(**self._node)
        self.address = str(self._cluster.address)

    def replace_lost(self) -> None:
        """Replace each node whose raylet is dead."""
        for node in list(self._cluster.worker_nodes):
            if not _runs(node):
                self._cluster.remove_node(node, allow_graceful=False)
                self._cluster.add_node(**self._node)

    def shutdown(self) -> None:
        """Stop all nodes."""
        self._cluster.shutdown()


def _runs(node: Any) -> bool:
    raylets = node.all_processes.get("raylet", [])
    return any(info.process.poll() is None for info in raylets)
