"""`report.html`: what a run came to, for people, in one file that needs no network."""

from llkd.cluster.shard_tasks import FEW_SHARDS
from llkd.config.run import RunConfig
from llkd.results.report.facts import gather
from llkd.results.report.page import render
from llkd.store.folder import Folder
from llkd.store.schema import REPORT, RunLayout

__all__ = ["needs_ray", "write_report"]


def needs_ray(config: RunConfig) -> bool:
    """Whether there are so many shards that the report is made by tasks.

    Raises:
        StorageError: the run directory cannot be listed.
    """
    layout = RunLayout(config.run_dir)
    return any(len(Folder(layout.rows(name)).shards()) > FEW_SHARDS for name in ("corpus", "test"))


def write_report(config: RunConfig) -> str:
    """Write the report of a run, finished or not, and whoever works in it; returns where it lies.

    Only `run_dir` of the config counts: the rest is as the run recorded it. Ray must be connected
    where `needs_ray`.

    Raises:
        IncompleteError: there is no run.
        ConfigError: what the run recorded is no config.
        StorageError: the report cannot be written.
    """
    root = Folder(RunLayout(config.run_dir).root)
    root.write_bytes(REPORT, render(gather(config)).encode())
    return f"{root.uri}/{REPORT}"
