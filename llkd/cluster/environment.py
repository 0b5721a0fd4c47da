"""What a Ray on this machine is told before it is imported, by its environment.

Ray reads some of it at import; so the package imports this module before any other.
"""

import os

ADDRESS_VARIABLE = "RAY_ADDRESS"
"""The environment variable that names the cluster to join."""

# Without it a local Ray listens on the machine's outer address. With it
# every port of a Ray that is started here binds to 127.0.0.1. On a cluster other nodes have to
# reach this process.
if not os.environ.get(ADDRESS_VARIABLE):
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # An engine in a process of its own must not outlive an actor that is killed.
    os.environ.setdefault("RAY_process_group_cleanup_enabled", "1")
    # This machine is not taken away; the watcher is one process more that each training starts.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Seconds between Ray Train's looks at its workers, by which it notices that they are done.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
