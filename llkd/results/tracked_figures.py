"""The figures of an epoch and of a finished run that experiment trackers get, by name.

The names are those of llkd/cluster/telemetry.py, without `llkd_` and with tags as parts, and those of
metrics.json, with `/` for the dots.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llkd.cluster.telemetry import (
    LABEL_SELECTED,
    LABEL_THRESHOLD,
    LOSS,
    MAX_TAG_VALUES,
    SELECTED,
    THRESHOLD,
    Metric,
)

NAME_LENGTH = 100
"""Maximum length of a label within a name: MLflow takes 250 characters in all."""


def epoch_figures(stats: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an epoch, by name, from its stats.json."""
    classes, labels = stats["classes"], _parts(list(stats["classes"]))
    by_label = len(labels) <= MAX_TAG_VALUES
    found: dict[str, float | None] = {
        _name(LOSS): stats["training_loss"],
        _name(SELECTED): stats["fraction"],
        "row_visits": stats["selected"] - stats["dropped"],
        "mean_uncertainty": mean_uncertainty(classes.values()),
        "waiting/share": stats["waiting"]["share"],
        **{f"seconds/{part}": seconds for part, seconds in stats["seconds"].items()},
        **{f"student/held_out/{k}": v for k, v in (stats["validation"] or {}).items()},
    }
    if by_label:
        for label, of_label in zip(labels, classes.values(), strict=True):
            found[f"{_name(LABEL_SELECTED)}/{label}"] = of_label["fraction"]
    for signal in ("confidence", "uncertainty"):
        thresholds = dict(zip(labels, stats["thresholds"][f"{signal}_c"], strict=True))
        known = [value for value in thresholds.values() if value is not None]
        if known:
            found[f"{_name(THRESHOLD)}/{signal}"] = math.fsum(known) / len(known)
            found[f"{_name(THRESHOLD)}_min/{signal}"] = min(known)
            found[f"{_name(THRESHOLD)}_max/{signal}"] = max(known)
        for label, value in thresholds.items() if by_label else ():
            found[f"{_name(LABEL_THRESHOLD)}/{signal}/{label}"] = value
    return _finite(found)


def final_figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a finished run, by name, from metrics.json, without those by label or coverage."""
    found: dict[str, Any] = {}

    def walk(section: Mapping[str, Any], above: str) -> None:
        for key, value in section.items():
            if isinstance(value, Mapping) and key not in ("per_class", "risk_coverage"):
                walk(value, f"{above}{key}/")
            elif isinstance(value, int | float):
                found[f"{above}{key}"] = value

    walk(metrics, "")
    return _finite(found)


def _name(metric: Metric) -> str:
    return metric.name.removeprefix("llkd_")


def _parts(labels: Sequence[str]) -> list[str]:
    """Label names as parts of names that every tracker accepts, without duplicates."""
    found: list[str] = []
    for number, label in enumerate(labels):
        part = re.sub(r"[^\w -]|^[\s.]+|\s+$", "_", label)[:NAME_LENGTH]
        found.append(part if part not in found else f"{part[: NAME_LENGTH - 12]}_{number}")
    return found


def mean_uncertainty(classes: Iterable[Mapping[str, Any]]) -> float | None:
    """Mean over all rows, from the entries `classes` of a stats.json; None if none was scored."""
    scored = [found for found in classes if found["mean_uncertainty"] is not None]
    rows = sum(found["rows"] for found in scored)
    if not rows:
        return None
    return math.fsum(found["mean_uncertainty"] * found["rows"] for found in scored) / rows


def _finite(found: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in found.items() if v is not None and math.isfinite(v)}
