"""What rows labelled by hand say of the corpus, as sentences for console and report."""

from collections.abc import Mapping
from typing import Any

CLEAR = 1.96
"""Standard errors from which a difference is no chance."""


def sentences(estimates: Mapping[str, Any]) -> list[str]:
    """The student, the teacher, their difference, and what more rows would give.

    Args:
        estimates: `estimates` of metrics.json.
    """
    found = []
    for who in ("student", "teacher"):
        if who in estimates:
            found.append(
                f"The {who} is right on {with_interval(estimates[who]['accuracy'])} of the corpus, by "
                f"{estimates[who]['rows']} rows labelled by hand that it has not learnt."
            )
    if "student" not in estimates:
        return [*found, "Too few of these rows judge the student (gold.judge)."]
    difference = estimates["difference"]
    if abs(difference["z"]) < CLEAR:
        found.append("Their difference may be chance.")
    else:
        better = "above" if difference["z"] > 0 else "below"
        found.append(
            f"The student is {better} the teacher by {100 * abs(difference['value']):.0f} points, more than "
            "chance explains."
        )
    more = estimates["more"]
    line = f"Another {more['rows']} rows would narrow the student's interval to ± {100 * more['half_width']:.0f} points"
    if "right_labels" in more:
        line += f", and raise the right labels that it learns by about {100 * more['right_labels']:.1f} points"
    return [*found, f"{line}."]


def with_interval(figure: Mapping[str, float]) -> str:
    """A share with its 95 % interval: `88 % (83 to 92 %)`."""
    value, low, high = (f"{100 * figure[key]:.0f}" for key in ("value", "low", "high"))
    return f"{value} % ({low} to {high} %)"
