"""Label names and texts are shown as they are, wherever they are shown."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from llkd.manifest import Manifest
from llkd.research.plots import draw_all
from llkd.research.results import RunResult
from llkd.stages.export import model_card
from llkd.storage import Folder
from llkd.summary import show_predictions
from tests.conftest import MakeConfig

NAMES = ["[red]x[/]", "<script>x", "a|b", "`c`", "$x_$", "_y", "[/]", "&amp;", "**z**", "end\\"]


def test_the_console(tmp_path: Any) -> None:
    screen = io.StringIO()
    counted = {name: {"rows": 1, "confidence": 0.5} for name in NAMES}
    predicted = Manifest("predict", {}, "", True, {"rows": [len(NAMES)], "labels": counted})
    ingested = Manifest("ingest", {}, "", True, {"rejects": {}})
    console = Console(file=screen, width=120)
    show_predictions(Folder(str(tmp_path)), predicted, ingested, None, console)
    shown = [
        line.split("│")[1].strip()
        for line in screen.getvalue().splitlines()
        if "50.0%" not in line and "10.0%" in line
    ]
    assert shown == NAMES


def test_the_model_card(make_config: MakeConfig) -> None:
    config = make_config(
        task={"labels": dict.fromkeys(NAMES, "<b>|\n# no"), "instruction": "<i>\n---"}
    )
    results = {"rows": 1, "epochs": 1, "epoch": 0, "row_visits_fraction": 1.0}
    card = model_card(config, Manifest("distill", {}, "", True, results))
    markup = (
        pytest.importorskip("markdown_it")
        .MarkdownIt("commonmark")
        .enable("table")
        .render(card.split("---", 2)[2])
    )
    import html

    for name in NAMES:
        assert f"<li>{html.escape(name)}: {html.escape('<b>| # no')}</li>" in markup
    assert "<script>" not in markup
    assert markup.count("<h1>") == 1


@pytest.mark.filterwarnings("error")
def test_the_plots(tmp_path: Any) -> None:
    entry = {
        "classes": {name: {"fraction": 0.5} for name in NAMES},
        "thresholds": {"confidence_c": [0.5] * len(NAMES), "uncertainty_c": [0.5] * len(NAMES)},
    }
    result = RunResult(
        policy="llkd", seed=0, accuracy=0.5, macro_f1=0.5, row_visits_fraction=0.5,
        unique_rows_fraction=0.5, seconds=1.0, epochs=(entry,),
    )  # fmt: skip
    figures = {"row_visits_fraction": 0.5, "macro_f1": 0.5}
    summary: Any = SimpleNamespace(policy="llkd", mean=figures, deviation=figures)
    draw_all(Folder(str(tmp_path)), [result], [summary])
    assert {path.name for path in tmp_path.iterdir()} == {
        "score.png",
        "selected.png",
        "thresholds.png",
    }
