"""The parts of the page: sections with their plots, tables, rows and findings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import plotly.graph_objects as go

from llkd.results.report.rows import Row

FINDING_KINDS = {"bad": "Problem", "warn": "Check", "note": "Note", "good": "Good"}
"""Titles by kind, the most severe first."""
NONE = "–"
"""A table cell without a value."""
Part = TypeVar("Part")


@dataclass(frozen=True)
class Table:
    """Cells as text, which the template escapes."""

    columns: Sequence[str]
    """Column heads; those of numeric columns begin with `#`."""
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Plot:
    """A figure, or several to choose from, with its title and its interpretation in a sentence."""

    key: str
    title: str
    reading: str
    figures: go.Figure | dict[str, go.Figure]
    """A figure, or several by the name in the page's menu."""
    table: Table | None = None
    wide: bool = False

    @property
    def variants(self) -> dict[str, go.Figure]:
        """Figures by name; a single figure has none."""
        return self.figures if isinstance(self.figures, dict) else {"": self.figures}


@dataclass(frozen=True)
class Finding:
    """A statement for the top of the page."""

    kind: str
    """One of FINDING_KINDS."""
    text: str


@dataclass(frozen=True)
class RowList:
    """Rows of one kind."""

    title: str
    note: str
    rows: Sequence[Row]


@dataclass
class Section:
    """A question and its answer."""

    key: str
    title: str
    short: str
    """Its name in the navigation."""
    lead: str = ""
    notes: list[str] = field(default_factory=list)
    """What is missing, and why."""
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    row_lists: Sequence[RowList] = ()
    findings: list[Finding] = field(default_factory=list)
    """Listed at the top of the page, with a link to this section."""
    answer: tuple[str, str] | None = None
    """(question, answer) for the top of the page."""

    def note(self, text: str) -> None:
        """Add to `notes`."""
        self.notes.append(text)

    def find(self, kind: str, text: str) -> None:
        """Add to `findings`; `kind` is one of FINDING_KINDS."""
        self.findings.append(Finding(kind, text))


def cell(value: float | None, form: str = ",") -> str:
    """A number as a table cell; NONE for None and NaN."""
    return NONE if value is None or np.isnan(value) else format(value, form)


def present(*parts: Part | None) -> list[Part]:
    """Those that are not None."""
    return [part for part in parts if part is not None]
