"""The cards state the origin of the labels."""

from typing import Any

import numpy as np
import pytest

from llkd.core.tally import Tally
from llkd.results.cards import dataset_card, model_card
from llkd.results.labelled_dataset import labelled_features
from llkd.store.manifest import Manifest
from tests.conftest import MakeConfig


def labelled_rows(classes: int) -> Tally:
    """The counts of a row of each label."""
    counts = {"rows_c": np.ones(classes, int), "confidence_c": np.full(classes, 0.5)}
    return Tally({**counts, "arrow_bytes": np.array(1), "file_bytes": np.array(1)})


ENGINES: dict[str, tuple[dict[str, Any], str, bool]] = {
    "vllm": (
        {"engine": "vllm", "model": "org/llm", "max_text_tokens": 77},
        "at most 77 tokens",
        True,
    ),
    "openai": (
        {"engine": "openai", "model": "gpt"},
        "log-probability of every label was read",
        True,
    ),
    "table": ({"engine": "table", "model": "labels.csv"}, "made elsewhere", False),
    "own": ({"weight": 1.0}, "made elsewhere", False),
}


@pytest.mark.parametrize(("teacher", "expected", "machine"), ENGINES.values(), ids=ENGINES)
def test_the_cards_name_the_origin_of_the_labels(
    make_config: MakeConfig, teacher: dict[str, Any], expected: str, machine: bool
) -> None:
    config = make_config(teacher=teacher, selection={"policy": "all"})
    facts = labelled_rows(3)
    rows = dataset_card(config, facts, labelled_features(config), None)
    results = {
        "rows": 1, "epochs": 1, "epoch": 0, "row_visits_fraction": 1.0, "keeps_probe": False,
    }  # fmt: skip
    student = model_card(config, Manifest("distill", {}, "", True, results), None)
    for card in (rows, student):
        assert expected in card
        assert ("No human labels were used." in card) == machine
        assert ("by a language model" in card or "from a language model" in card) == machine
    assert ("machine-generated" in rows) == machine
    assert ("tokens of a text" in rows) == ("vllm" in str(teacher))
    assert "trained on all rows" in student


@pytest.mark.parametrize("used", [True, False])
def test_a_model_card_tells_how_labels_were_refined(make_config: MakeConfig, used: bool) -> None:
    results = {
        "rows": 1, "epochs": 1, "epoch": 0, "row_visits_fraction": 1.0, "keeps_probe": False,
        "relabelled_fraction": 0.27, "prior": {"used": used},
    }  # fmt: skip
    card = model_card(make_config(), Manifest("distill", {}, "", True, results), None)
    then = (
        " The labels follow frequencies that were estimated without human labels." if used else ""
    )
    assert f"then changed 27% of the labels.{then} In each epoch the student" in card
