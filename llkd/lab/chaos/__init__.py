"""Runs that are disturbed on purpose, and what is seen of them afterwards."""

import llkd.cluster.connection  # noqa: F401  # first: it keeps a Ray of this machine on the loopback
