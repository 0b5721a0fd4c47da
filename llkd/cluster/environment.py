"""Environment variables of a local Ray, set before Ray is imported.

Ray reads some of them at import, so the package imports this module first.
"""

import os

ADDRESS_VARIABLE = "RAY_ADDRESS"
"""The environment variable with the address of the cluster to join."""

# The first variable makes a local Ray bind all ports to 127.0.0.1; otherwise it listens on the
# machine's public address. On a cluster other nodes must reach this process.
if not os.environ.get(ADDRESS_VARIABLE):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # An engine in a separate process must not outlive an actor that is killed.
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "1")
    # A local machine is not preempted, and the watcher is another process for each training.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Interval in seconds at which Ray Train checks whether its workers have finished.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
