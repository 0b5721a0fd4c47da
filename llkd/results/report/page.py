"""The page, in one file that needs no network: what is text in it is escaped."""

import json

from llkd.results.report import readings
from llkd.results.report.facts import Facts, config_text
from llkd.results.report.findings import findings
from llkd.results.report.sections import sections_of, tiles_of
from llkd.results.report.style import Variants
from llkd.store.folder import portable_path
from llkd.store.schema import RunLayout


def render(facts: Facts) -> str:
    """The page as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    sections = sections_of(facts)
    environment = Environment(
        loader=PackageLoader("llkd.results.report", "template"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    layout = RunLayout(facts.config.run_dir)
    return environment.get_template("report.html.j2").render(
        name=layout.name,
        place=portable_path(layout.root),
        instruction=facts.config.task.instruction,
        made=f"{facts.made:%Y-%m-%d %H:%M} UTC",
        state="finished" if facts.complete else "not finished",
        tiles=tiles_of(facts),
        findings=findings(facts),
        answers=[
            ("Which labels does the teacher confuse?", readings.teacher_confuses(facts), "teacher"),
            ("What did selection leave out?", readings.selection_left_out(facts), "selection"),
            ("Where would more labels help?", readings.more_labels(facts), "labels"),
        ],
        sections=sections,
        config=config_text(facts),
        versions=facts.versions,
        figures=embedded({p.key: p.variants for s in sections for p in s.plots}),
        plotlyjs=get_plotlyjs(),
    )


def embedded(plots: dict[str, Variants]) -> str:
    """Figures as JSON for a script element: no text in it can end that."""
    found = {
        key: [{"name": name, **json.loads(figure.to_json())} for name, figure in variants.items()]
        for key, variants in plots.items()
    }
    text = json.dumps(found, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
