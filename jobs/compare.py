"""Compare selection policies on the same labels, over several seeds.

    python jobs/compare.py CONFIG --policies llkd,refined,all,random [--seeds 3] [--cheap]
        [--json FILE] [--plots FOLDER] [dotted.key=value ...]

Ingests and labels what is not yet there, then trains a student for each policy and seed: by
fine-tuning, in <run_dir>/compare/<policy>-<seed>, which resumes where it was broken off; or, with
--cheap, a head on the frozen student, in seconds a run and without Ray. Shows a table; writes the
figures to FILE and plots to FOLDER (by default <run_dir>/compare/plots). Needs a test set.

A policy can have settings of its own: --policies 'llkd,llkd:selection.weights=none;student.epochs=2'.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from llkd.cli import connected, job_parser, read_config, run_logged
from llkd.config import RunConfig
from llkd.errors import LLKDError
from llkd.research.compare import require_comparable


def main() -> None:
    """Run the comparison."""
    parser = job_parser("compare", __doc__)
    parser.add_argument(
        "--policies", help="by commas", default="llkd,refined,all,random,teacher_confidence"
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many (3)")
    parser.add_argument("--cheap", action="store_true", help="a head on the frozen student")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--plots", help="where the plots go")
    arguments = parser.parse_intermixed_args()
    if arguments.seeds < 1:
        parser.error("--seeds must be 1 or more")
    config = read_config(arguments)
    arguments.policies = list(dict.fromkeys(arguments.policies.split(",")))
    try:
        require_comparable(config, arguments.policies)
    except LLKDError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)
    run_logged("compare", config, lambda console: compare(config, arguments, console))


def compare(config: RunConfig, arguments: argparse.Namespace, console: Console) -> None:
    """Make the runs, and show and write what they came to."""
    from llkd.research.compare import (
        is_labelled,
        run_cheap,
        run_fine_tuned,
        summary_table,
    )
    from llkd.research.plots import draw_all
    from llkd.research.results import summarise
    from llkd.schema import RunLayout
    from llkd.storage import Folder
    from llkd.teacher.examples import with_drawn_examples

    config = with_drawn_examples(config)
    policies = arguments.policies
    if arguments.cheap and is_labelled(config):
        results = run_cheap(config, policies, arguments.seeds, console)
    else:
        with connected():
            from llkd.pipeline import run_ingest, run_label

            run_ingest(config, console)
            run_label(config, console)
            run = run_cheap if arguments.cheap else run_fine_tuned
            results = run(config, policies, arguments.seeds, console)
    summaries = summarise(results)
    console.print(summary_table(summaries))
    if arguments.json is not None:
        figures = [result.figures() for result in results]
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    plots = Folder(arguments.plots or RunLayout(config.run_dir).comparison("plots"))
    draw_all(plots, results, summaries)
    console.print(f"Plots     {plots.uri}", highlight=False)


if __name__ == "__main__":
    main()
