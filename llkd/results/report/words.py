"""Format numbers and label names for the sentences of a report."""

from collections.abc import Sequence

MAX_NAME = 40
"""Characters of a label name in a sentence."""
MAX_LISTED = 5
"""Label names listed in a sentence."""


def percent(share: float) -> str:
    """A share as a percentage, with one decimal below 10 %."""
    if 0 < share < 0.001:
        return "under 0.1\u00a0%"
    return f"{100 * share:.1f}\u00a0%" if 0 < share < 0.1 else f"{100 * share:.0f}\u00a0%"


def points(difference: float) -> str:
    """The absolute difference of two shares, in percentage points."""
    return f"{abs(100 * difference):.1f} points"


def count(number: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def quoted(name: str) -> str:
    """A label name within a sentence: truncated, and isolated if it may be right-to-left."""
    name = name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"
    return f"“{name}”" if name.isascii() else f"“\u2068{name}\u2069”"


def listed(names: Sequence[str]) -> str:
    """The first label names and the number of the others."""
    text = ", ".join(map(quoted, names[:MAX_LISTED]))
    others = len(names) - MAX_LISTED
    return f"{text} and {count(others, 'other label')}" if others > 0 else text
