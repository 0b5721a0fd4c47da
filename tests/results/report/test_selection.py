"""What the report says about refined labels."""

from types import SimpleNamespace
from typing import Any

import pytest

from llkd.results.report.selection import refinement

PRIOR = {
    "estimate": {"ham": 0.8, "spam": 0.2},
    "imposed": {"spam": 0.35, "ham": 0.65},
    "divergence": 0.193,
    "agreement": 0.84,
    "used": True,
}


def said(**distilled: Any) -> str:
    facts: Any = SimpleNamespace(distilled=distilled)
    return refinement(facts)


@pytest.mark.parametrize(
    ("distilled", "expected"),
    [
        ({}, ""),
        ({"relabelled_fraction": 0.24}, " Refinement changed 24\xa0% of the teacher's labels."),
    ],
)
def test_labels_that_were_changed(distilled: dict[str, Any], expected: str) -> None:
    assert said(**distilled) == expected


def test_the_label_frequencies_and_the_evidence_for_them() -> None:
    used = said(relabelled_fraction=0.24, prior=PRIOR)
    assert "“ham” 65" in used
    assert used.index("ham") < used.index("spam")
    assert "0.193 nats" in used
    assert "confident labels 0.84" in used
    refused = said(relabelled_fraction=0.24, prior={**PRIOR, "used": False})
    assert "too uncertain, to be used (0.193 nats" in refused
    assert "65" not in refused


def test_how_the_labels_do_on_rows_labelled_by_hand() -> None:
    gold = {"rows": 50, "teacher_right": 35, "refined_right": 40, "helps": True}
    assert "Of 50 rows labelled by hand, the teacher has 70" in said(gold=gold)
    assert "the student learns 80" in said(relabelled_fraction=0.24, gold=gold)
    assert "so they are not" not in said(gold=gold)
    assert "fewer labels would be right, so they are not" in said(gold={**gold, "helps": False})
