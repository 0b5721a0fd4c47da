"""The statistics that each epoch stores in its folder, and what the console shows of them."""

from typing import Any

import numpy as np

from llkd.config.run import RunConfig
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout

STATS = "stats.json"


def read_stats(config: RunConfig, epoch: int) -> dict[str, Any]:
    """An epoch's stats.json."""
    stats: dict[str, Any] = Folder(RunLayout(config.run_dir).epoch(epoch)).read_json(STATS)
    return stats


def scores_until(config: RunConfig, epochs: int) -> list[float]:
    """The score of each of the first epochs: macro-F1 against the labels of the held-out rows."""
    return [read_stats(config, epoch)["validation"]["macro_f1"] for epoch in range(epochs)]


def best_epoch(scores: list[float]) -> int:
    """The first epoch with the highest score."""
    return int(np.argmax(scores))


def notes(epoch: int, stats: dict[str, Any]) -> list[str]:
    """The console lines of an epoch, with a warning about labels without selected rows."""
    line = (
        f"epoch {epoch + 1}: {stats['selected']:,} of {stats['rows']:,} rows selected "
        f"({stats['fraction']:.1%}), training loss {stats['training_loss']:.3f}"
    )
    if stats["validation"] is not None:
        line += f", agreement on rows held out {stats['validation']['accuracy']:.3f}"
    empty = [
        f"{name} (of {found['rows']:,} labelled so)"
        for name, found in stats["classes"].items()
        if found["selected"] == 0
    ]
    return [line, f"warning: no row selected of {', '.join(empty)}"] if empty else [line]
