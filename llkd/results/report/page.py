"""Render the page: one HTML file that needs no network, with every text escaped."""

import json
from collections.abc import Sequence

import plotly.graph_objects as go

from llkd.cluster.progress import duration
from llkd.config.load import dump_config
from llkd.results.report.examples import examples_section
from llkd.results.report.facts import Facts
from llkd.results.report.parts import FINDING_KINDS, Finding, Section
from llkd.results.report.run import cost_section, run_section
from llkd.results.report.selection import selection_section
from llkd.results.report.student import labels_section, student_section
from llkd.results.report.teacher import teacher_section
from llkd.results.report.words import count, percent
from llkd.store.folder import portable_path
from llkd.store.schema import RunLayout


def render(facts: Facts) -> str:
    """The page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("llkd.results.report", "template"), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    layout, sections = RunLayout(facts.config.run_dir), sections_of(facts)
    return environment.get_template("report.html.j2").render(
        name=layout.name,
        place=portable_path(layout.root),
        instruction=facts.config.task.instruction,
        made=f"{facts.made:%Y-%m-%d %H:%M} UTC",
        state="finished" if facts.complete else "not finished",
        tiles=_tiles(facts),
        findings=findings_of(sections),
        finding_kinds=FINDING_KINDS,
        sections=sections,
        # Secrets are refused when a config is loaded: it contains none.
        config=dump_config(facts.config),
        versions=facts.versions,
        figures=embedded({plot.key: plot.variants for s in sections for plot in s.plots}),
        plotlyjs=get_plotlyjs(),
    )


def sections_of(facts: Facts) -> list[Section]:
    """All sections, in the order of a reader's questions."""
    return [
        teacher_section(facts),
        selection_section(facts),
        student_section(facts),
        labels_section(facts),
        examples_section(facts),
        cost_section(facts),
        run_section(facts),
    ]


def findings_of(sections: Sequence[Section]) -> list[tuple[str, Finding]]:
    """(key of the section, finding), the most severe first; of equal severity, those about the
    whole run first."""
    severity = list(FINDING_KINDS)
    found = [(s.key, finding) for s in (sections[-1], *sections[:-1]) for finding in s.findings]
    return sorted(found, key=lambda entry: severity.index(entry[1].kind))


def _tiles(facts: Facts) -> list[tuple[str, str, str]]:
    """(title, value, note) of the headline figures."""
    tiles = []
    if facts.tested is not None:
        teacher, student = facts.tested.teacher, facts.tested.student
        gain = student.macro_f1 - teacher.macro_f1
        note = f"teacher {teacher.macro_f1:.3f} ({gain:+.3f})"
        tiles += [
            ("student, macro-F1", f"{student.macro_f1:.3f}", note),
            ("student, accuracy", f"{student.accuracy:.3f}", f"teacher {teacher.accuracy:.3f}"),
            ("measured on", f"{student.rows:,}", "test rows"),
        ]
    elif facts.gold is not None:
        measured = facts.gold.calibrated
        note = f"{count(measured.rows, 'row')} of the {facts.gold.where}"
        tiles.append(("teacher, accuracy", f"{measured.accuracy:.3f}", note))
    if facts.corpus:
        rows = int(facts.corpus["rows_c"].sum())
        tiles.append(("rows labelled", f"{rows:,}", f"{len(facts.names):,} labels"))
    if facts.epochs:
        note = f"at least once in {count(len(facts.stats), 'epoch')}"
        tiles.append(("rows trained on", percent(1 - facts.never_selected), note))
    seconds = facts.metrics.get("seconds", {}).get("total")
    if seconds is not None:
        tiles.append(("time", duration(seconds), "all stages"))
    return tiles


def embedded(plots: dict[str, dict[str, go.Figure]]) -> str:
    """Figures as JSON for a script element, escaped so that no text can close the element."""
    data = {
        key: [{"name": name, **json.loads(figure.to_json())} for name, figure in variants.items()]
        for key, variants in plots.items()
    }
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
