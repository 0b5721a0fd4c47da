"""Fault injection: runs whose processes are killed, compared with a run without faults."""

import llkd.cluster.connection  # noqa: F401  # first: it keeps a local Ray on the loopback
