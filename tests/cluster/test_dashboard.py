"""The Grafana dashboard draws the metrics that a run exports."""

import json
import re
from pathlib import Path
from typing import Any

from llkd.cluster.telemetry import (
    METRICS,
)
from tests.conftest import ROOT


def dashboard() -> dict[str, Any]:
    return dict(json.loads((ROOT / "jobs/clusters/grafana.json").read_text()))


def test_the_dashboard_draws_all_metrics_and_no_others() -> None:
    from ray.dashboard.modules.metrics.dashboards import default_dashboard_panels

    rays_own = set(re.findall(r"\bray_\w+", Path(default_dashboard_panels.__file__).read_text()))
    asked = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    asked += [variable["query"]["query"] for variable in dashboard()["templating"]["list"][1:2]]
    names = {name for query in asked for name in re.findall(r"\bray_\w+", query)}
    ours = {f"ray_{metric.name}": metric for metric in METRICS}
    assert {name for name in names if name.startswith("ray_llkd_")} == ours.keys()
    assert names - ours.keys() <= rays_own
    for query in asked:
        tags = {tag for group in re.findall(r"by \(([^)]*)\)", query) for tag in group.split(", ")}
        tags |= set(re.findall(r"(\w+)=~?\"", query))
        for name in set(re.findall(r"\bray_llkd_\w+", query)):
            assert tags <= set(ours[name].tags), query


def test_the_dashboard_can_be_imported() -> None:
    found = dashboard()
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert (
        found["templating"]["list"][0] | {"name": "datasource", "type": "datasource"}
        == (found["templating"]["list"][0])
    )
    for part in (*panels, *(target for panel in panels for target in panel["targets"])):
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels:
        for target in panel["targets"]:
            tags = set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
            grouped = set(re.findall(r"\w+", re.findall(r"by \(([^)]*)\)", target["expr"])[0]))
            assert tags <= grouped
    places = [
        {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        for at in (panel["gridPos"] for panel in panels)
    ]
    assert len(set().union(*places)) == sum(map(len, places))


def test_names_follow_the_conventions_of_prometheus() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("llkd_")
        assert metric.name == metric.name.lower()
        assert metric.tags[0] == "run"
        assert metric.description.endswith(".")
