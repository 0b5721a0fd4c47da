"""Compare selection policies on the same labels, over several seeds.

    python jobs/compare.py CONFIG [CONFIG ...] [--policies llkd,refined,all,random] [--seeds 3]
        [--cheap] [--json FILE] [--plots FOLDER] [dotted.key=value ...]

Ingests and labels the data sets where necessary, then trains a student for each policy and seed: by
fine-tuning, in <run_dir>/compare/<policy>-<seed>, where an interrupted run resumes; or, with --cheap,
as a head on the frozen student, in seconds per run and without Ray. A linear probe fitted to all rows
is one more baseline. Prints a table for each config, and one over all configs; writes the figures to
FILE and plots.html to FOLDER (by default <run_dir>/compare/plots). Requires a test set.

A policy can have settings of its own: --policies 'llkd,llkd:selection.weights=none;student.epochs=2'.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from llkd.cli import (
    connected,
    do_logged,
    in_run_dir,
    plain_parser,
    reported_errors,
    write_figures,
)
from llkd.config.load import load_config
from llkd.config.packages import require_packages
from llkd.config.run import RunConfig
from llkd.lab.compare.compare import require_comparable
from llkd.preflight import require_installed
from llkd.store.folder import portable_path


def main() -> None:
    """Run the comparisons."""
    parser = plain_parser("compare", __doc__)
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="YAML configs")
    parser.add_argument(
        "--policies",
        help="separated by commas, see above for their own settings",
        default="llkd,refined,all,random,teacher_confidence",
    )
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (3)")
    parser.add_argument("--cheap", action="store_true", help="train a head on the frozen student")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument(
        "--plots", metavar="FOLDER", help="write plots here, in a subfolder for each config"
    )
    arguments = parser.parse_intermixed_args()
    paths = [path for path in arguments.configs if "=" not in path or Path(path).exists()]
    overrides = [text for text in arguments.configs if text not in paths]
    if arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1, not {arguments.seeds}")
    if not paths:
        parser.error("give at least one config")
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        parser.error(f"--json: no such folder: {arguments.json.absolute().parent}")
    arguments.policies = list(dict.fromkeys(arguments.policies.split(",")))
    with reported_errors():
        require_packages("jobs/compare.py", "scipy", extra="research")
        configs = {Path(path).stem: load_config(path, overrides) for path in paths}
        for config in configs.values():
            require_comparable(config, arguments.policies)
            require_installed("compare", config)
            if not arguments.cheap:
                require_installed("evaluate", config)
    if len({config.run_dir for config in configs.values()}) < len(paths):
        parser.error("each config needs its own name and its own run_dir")
    sys.exit(_compare_all(configs, arguments))


def _compare_all(configs: dict[str, RunConfig], arguments: argparse.Namespace) -> int:
    """Compare on each config; returns the exit status."""
    from llkd.lab.compare.results import Comparison
    from llkd.lab.compare.tables import overview_table

    found: dict[str, Comparison] = {}
    for name, config in configs.items():

        def work(console: Console, name: str = name, config: RunConfig = config) -> None:
            with in_run_dir(config):
                found[name] = compare(name, config, arguments, console)
            if arguments.json is not None:
                write_figures(arguments.json, _figures(found, len(configs) > 1))

        if status := do_logged("compare", config, work):
            return status
    if len(found) > 1:
        width = None if sys.stdout.isatty() else 60 + 16 * len(found)
        Console(soft_wrap=True, width=width).print(overview_table(found))
    return 0


def _figures(found: dict[str, Any], several: bool) -> list[dict[str, Any]]:
    """The figures of all runs; those of several configs carry the config's name."""
    return [
        {**({"config": name} if several else {}), **result.figures()}
        for name, one in found.items()
        for result in one.results
    ]


def compare(name: str, config: RunConfig, arguments: argparse.Namespace, console: Console) -> Any:
    """Run the policies of a config, print the table and write the plots."""
    from llkd.cluster.shard_tasks import FEW_SHARDS
    from llkd.lab.compare.compare import comparison, is_labelled
    from llkd.lab.compare.plots import PLOTS, draw_all
    from llkd.lab.compare.tables import summary_table
    from llkd.store.folder import Folder
    from llkd.store.schema import RunLayout
    from llkd.teacher.examples import with_drawn_examples

    config = with_drawn_examples(config)
    few = len(Folder(RunLayout(config.run_dir).rows("test")).shards()) <= FEW_SHARDS
    if arguments.cheap and few and is_labelled(config):
        found = comparison(config, arguments.policies, arguments.seeds, True, console)
    else:
        with connected():
            from llkd.pipeline import run_ingest, run_label

            run_ingest(config, console)
            run_label(config, console)
            found = comparison(
                config, arguments.policies, arguments.seeds, arguments.cheap, console
            )
    console.print(summary_table(found))
    folder = RunLayout(config.run_dir).comparison("plots")
    plots = Folder(f"{arguments.plots}/{name}" if arguments.plots else folder)
    draw_all(plots, found.results, found.summaries)
    console.print(f"Plots     {escape(portable_path(plots.uri))}/{PLOTS}", highlight=False)
    return found


if __name__ == "__main__":
    main()
