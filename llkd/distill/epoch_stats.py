"""The statistics that each trained epoch leaves in its folder."""

from typing import Any

from llkd.config.run import RunConfig
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout

STATS = "stats.json"


def read_stats(config: RunConfig, epoch: int) -> dict[str, Any]:
    """An epoch's stats.json."""
    stats: dict[str, Any] = Folder(RunLayout(config.run_dir).epoch(epoch)).read_json(STATS)
    return stats
