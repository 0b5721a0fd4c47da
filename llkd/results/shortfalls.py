"""What a finished student does not reach."""

from collections.abc import Mapping
from typing import Any


def shortfalls(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Sentences about what the student does not reach on the test set, by macro-F1: `teacher`, and
    `probe` for the linear probe on the same labels."""
    if "test" not in metrics.get("student", {}):
        return {}
    student, found = metrics["student"]["test"]["macro_f1"], {}
    if student < metrics["teacher"]["test"]["macro_f1"]:
        found["teacher"] = (
            "The student stays below its teacher in macro-F1. More rows, more epochs or a larger "
            "student.model may help."
        )
    if "test" in metrics.get("probe", {}) and student < metrics["probe"]["test"]["macro_f1"]:
        found["probe"] = (
            "The student stays below a linear probe on the same labels in macro-F1, which "
            "student.keep: probe makes the result."
        )
    return found
