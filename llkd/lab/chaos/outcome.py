"""What was done to runs, what came of it, and how that is told."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from llkd.errors import ChaosError
from llkd.lab.chaos.warden import KINDS


@dataclass
class Strike:
    """One disturbance."""

    run: int
    kind: str
    what: str
    outcome: str = "went on"
    """`went on` by itself; or `ended` with an exit status other than 0, and started again."""


@dataclass
class Ordeal:
    """One run, from its first start to its end."""

    run: int
    strikes: list[Strike] = field(default_factory=list)
    unstruck: list[str] = field(default_factory=list)
    """The kinds of the disturbances that found no victim while the run lasted."""
    starts: int = 0
    statuses: list[int] = field(default_factory=list)
    """Exit status of each start."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def outcome_table(ordeals: Sequence[Ordeal]) -> Table:
    """What was done, by kind, and what came of it."""
    struck, unstruck = _struck(ordeals), _unstruck(ordeals)
    outcomes = Counter((strike.kind, strike.outcome) for strike in struck)
    missed = Counter(unstruck)
    table = Table(
        title=f"{len(struck)} of {len(struck) + len(unstruck)} disturbances, {len(ordeals)} runs",
        title_justify="left",
    )
    columns = ("went on by itself", "ended, and went on when started again", "found no victim")
    for column in ("", *columns):
        table.add_column(column, justify="left" if not column else "right")
    for kind in KINDS:
        counts = (outcomes[kind, "went on"], outcomes[kind, "ended"], missed[kind])
        if any(counts):
            table.add_row(kind, *map(str, counts))
    return table


def verdict(ordeals: Sequence[Ordeal]) -> str:
    """What came of all, in a line.

    Raises:
        ChaosError: something is wrong, or nothing could be struck.
    """
    if wrong := sum(len(ordeal.problems) for ordeal in ordeals):
        raise ChaosError(f"{wrong} problems in {len(ordeals)} runs, told above")
    struck, unstruck = _struck(ordeals), _unstruck(ordeals)
    kinds = ", ".join(f"{kind}: {count}" for kind, count in sorted(Counter(unstruck).items()))
    if unstruck and not struck:
        raise ChaosError(
            f"None of {len(unstruck)} disturbances found a victim ({kinds}), so nothing was tried",
            "Take a larger corpus, or other --kinds.",
        )
    missed = f"{len(unstruck)} of {len(struck) + len(unstruck)} disturbances found no victim"
    told = "Nothing lost, nothing doubled, nothing left over."
    return f"{told} But {missed} ({kinds})." if unstruck else told


def _struck(ordeals: Sequence[Ordeal]) -> list[Strike]:
    return [strike for ordeal in ordeals for strike in ordeal.strikes]


def _unstruck(ordeals: Sequence[Ordeal]) -> list[str]:
    return [kind for ordeal in ordeals for kind in ordeal.unstruck]


def figures(ordeals: Sequence[Ordeal]) -> list[dict[str, Any]]:
    """All that was seen, as JSON."""
    return [asdict(ordeal) for ordeal in ordeals]
