"""Environment variables of a local Ray, set before Ray is imported.

Ray reads some of them at import, so the package imports this module first.
"""

import os

ADDRESS_VARIABLE = "RAY_ADDRESS"
"""The environment variable with the address of the cluster to join."""

# A local Ray binds every port to 127.0.0.1 by the first variable; without, it listens on the
# machine's public address. On a cluster other nodes have to reach this process.
if not os.environ.get(ADDRESS_VARIABLE):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # An engine in a separate process must not outlive an actor that is killed.
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "1")
    # The local machine is not preempted; the watcher would be one more process for each training.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Seconds between two polls of Ray Train, by which it notices that its workers have finished.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
