"""`report.html`: the results of a run in one file that needs no network."""

from llkd.cluster.shard_tasks import FEW_SHARDS
from llkd.config.run import RunConfig
from llkd.results.report.facts import gather
from llkd.results.report.page import render
from llkd.store.folder import Folder
from llkd.store.schema import REPORT, RunLayout

__all__ = ["needs_ray", "write_report"]


def needs_ray(config: RunConfig) -> bool:
    """Whether the run has too many shards to read them in this process.

    Raises:
        StorageError: the run directory cannot be listed.
    """
    layout = RunLayout(config.run_dir)
    return any(len(Folder(layout.rows(name)).shards()) > FEW_SHARDS for name in ("corpus", "test"))


def write_report(config: RunConfig) -> str:
    """Write the report of a run, finished or in progress; returns its path.

    Only `run_dir` of the config is used: the rest is read from the run's run.yaml. Ray must be
    connected if `needs_ray`.

    Raises:
        IncompleteError: the run directory has no run.yaml.
        ConfigError: run.yaml is invalid.
        StorageError: the report cannot be written.
    """
    root = Folder(RunLayout(config.run_dir).root)
    root.write_bytes(REPORT, render(gather(config)).encode())
    return f"{root.uri}/{REPORT}"
