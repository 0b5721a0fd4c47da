"""The injected faults, their outcome, and how both are reported."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from llkd.errors import ChaosError

TITLES = {
    "actor": "ray::MapWorker",
    "engine": "VLLM::EngineCore",
    "trainer": "ray::RayTrainWorker",
    "task": "ray::Map(",
}
"""Process titles by kind: an actor of the teacher's or the student's pool, an engine in a separate
process, a training worker, a task over shards."""

KINDS = (*TITLES, "node", "driver", "store")
"""All kinds of faults: also the loss of a node by the death of its raylet, of the driver process,
and of the space in every object store."""

WHOLE_NODES = ("node", "store")
"""These hit all jobs on a node, and are for a cluster that runs no other job."""


@dataclass
class Fault:
    """One injected fault."""

    run: int
    kind: str
    what: str
    outcome: str = "went on"
    """`went on` without a restart; or `ended` with an exit status other than 0, and restarted."""


@dataclass
class RunOutcome:
    """One run, from its first start to its end."""

    run: int
    faults: list[Fault] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    """Kinds of the planned faults that found no victim while the run lasted."""
    starts: int = 0
    statuses: list[int] = field(default_factory=list)
    """Exit status of each start."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def outcome_table(outcomes: Sequence[RunOutcome]) -> Table:
    """The outcomes of all faults, by kind."""
    faults, missed = _faults(outcomes), _missed(outcomes)
    counts_of = Counter((fault.kind, fault.outcome) for fault in faults)
    missed_of = Counter(missed)
    table = Table(
        title=f"{len(faults)} of {len(faults) + len(missed)} faults, {len(outcomes)} runs",
        title_justify="left",
    )
    columns = ("went on by itself", "ended, and went on when restarted", "found no victim")
    for column in ("", *columns):
        table.add_column(column, justify="left" if not column else "right")
    for kind in KINDS:
        counts = (counts_of[kind, "went on"], counts_of[kind, "ended"], missed_of[kind])
        if any(counts):
            table.add_row(kind, *map(str, counts))
    return table


def verdict(outcomes: Sequence[RunOutcome]) -> str:
    """The overall result, in a line.

    Raises:
        ChaosError: a run has a problem, or no fault found a victim.
    """
    if wrong := sum(len(outcome.problems) for outcome in outcomes):
        raise ChaosError(
            f"{wrong} problems in {len(outcomes)} runs, listed above", "See the logs named there."
        )
    faults, missed = _faults(outcomes), _missed(outcomes)
    kinds = ", ".join(f"{kind}: {count}" for kind, count in sorted(Counter(missed).items()))
    if missed and not faults:
        raise ChaosError(
            f"None of {len(missed)} faults found a victim ({kinds}), so nothing was tested",
            "Take a larger corpus, or other --kinds.",
        )
    result = "Nothing lost, nothing doubled, nothing left over."
    if not missed:
        return result
    return f"{result} But {len(missed)} of {len(faults) + len(missed)} faults found no victim ({kinds})."


def _faults(outcomes: Sequence[RunOutcome]) -> list[Fault]:
    return [fault for outcome in outcomes for fault in outcome.faults]


def _missed(outcomes: Sequence[RunOutcome]) -> list[str]:
    return [kind for outcome in outcomes for kind in outcome.missed]


def figures(outcomes: Sequence[RunOutcome]) -> list[dict[str, Any]]:
    """The outcomes as JSON, for `--json`."""
    return [asdict(outcome) for outcome in outcomes]
