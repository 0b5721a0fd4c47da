"""Label names and texts with markup are displayed literally."""

import io
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from llkd.lab.compare.plots import PLOTS, draw_all
from llkd.lab.compare.results import RunResult
from llkd.results.cards import dataset_card, model_card
from llkd.results.labelled_dataset import labelled_features
from llkd.results.summary import show_predictions
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest
from tests.conftest import MakeConfig
from tests.results.test_cards import labelled_rows

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


YAML_NAMES = [
    "yes",
    "null",
    "1.5",
    "- x",
    "--- ",
    "{a: b}",
    "%",
    "@x",
    "'",
    '"',
    ": ",
    "é\u3000x",
    "x" * 300,
]


def test_the_cards(make_config: MakeConfig) -> None:
    from huggingface_hub import DatasetCard, ModelCard

    names = [*NAMES, *(name.strip() for name in YAML_NAMES)]
    config = make_config(
        task={"labels": dict.fromkeys(names, "<b>|\n# no"), "instruction": "<i>\n---\n# x"}
    )
    results = {
        "rows": 1, "epochs": 1, "epoch": 0, "row_visits_fraction": 1.0, "keeps_probe": False,
    }  # fmt: skip
    figures = {"rows": 9, "accuracy": 0.5, "macro_f1": 0.25, "ece": 0.125}
    of_label = dict.fromkeys(("precision", "recall", "f1", "support"), 1)
    by_name = dict.fromkeys(names, of_label)
    metrics = {
        "teacher": {"test": figures},
        "student": {"test": {**figures, "per_class": by_name}},
    }
    distilled = Manifest("distill", {}, "", True, results)
    facts = labelled_rows(len(names))
    student = model_card(config, distilled, metrics)
    labelled = dataset_card(config, facts, labelled_features(config), metrics)
    for card in (student, labelled):
        body = card.split("\n---\n", 1)[1]
        shown, headings = rendered(body)
        for name in names:
            assert (" ".join(name.split()), "<b>| # no") in shown
        assert headings == 1
    found = ModelCard(student).data.eval_results
    assert [(one.metric_type, one.metric_value) for one in found] == [
        ("accuracy", 0.5),
        ("f1", 0.25),
    ]
    features = DatasetCard(labelled).data.to_dict()["dataset_info"]["features"]
    assert list(features[1]["dtype"]["class_label"]["names"].values()) == names


def rendered(markdown: str) -> tuple[set[tuple[str, str]], int]:
    """(first two cells of each line of all tables, as displayed; number of main headings)."""
    import markdown_it

    markup = markdown_it.MarkdownIt("commonmark").enable("table").render(markdown)
    page = ElementTree.fromstring(f"<main>{markup}</main>")
    lines = [[*line.iter("td"), *line.iter("th")] for line in page.iter("tr")]
    for cell in (cell for line in lines for cell in line):
        assert {child.tag for child in cell.iter()} <= {"td", "th", "code", "a", "br"}
    shown = [["".join(cell.itertext()) for cell in line] for line in lines]
    return {(line[0], line[1]) for line in shown if len(line) > 1}, len(page.findall(".//h1"))


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
    page = (tmp_path / PLOTS).read_text()
    assert "Thresholds on uncertainty" in page
    assert "<script>x" not in page
