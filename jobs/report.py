"""Make the report of a run, finished or in progress.

    python jobs/report.py jobs/configs/bbc.yaml [run_dir=runs/other]

Reads the run directory, even while the run is in progress, and writes <run_dir>/report.html.
"""

import sys
from contextlib import nullcontext

from rich.console import Console
from rich.markup import escape

from llkd.cli import connected, do_logged, job_parser, reported_errors
from llkd.config.load import load_config
from llkd.errors import ConfigError, IncompleteError
from llkd.store.folder import portable_path


def main() -> None:
    """Write the report and print its path; exit with 2 without a run, with 1 if it fails."""
    arguments = job_parser("report", __doc__).parse_intermixed_args()
    with reported_errors():
        from llkd.results.report.facts import recorded_config

        try:
            config = recorded_config(load_config(arguments.config, arguments.overrides))
        except IncompleteError as error:  # the config names a directory without a run
            raise ConfigError(error.what, error.remedy) from error

    def work(console: Console) -> None:
        from llkd.results.report import needs_ray, write_report

        with connected() if needs_ray(config) else nullcontext():
            console.print(f"Report    {escape(portable_path(write_report(config)))}")

    sys.exit(do_logged("report", config, work))


if __name__ == "__main__":
    main()
