"""Measure LLKD beside what one would use instead.

    python jobs/benchmark.py teacher [--config jobs/configs/bbc.yaml] [--json FILE]
    python jobs/benchmark.py labels CONFIG [CONFIG ...] [--json FILE]

`teacher`: rows a second of the labelling stage, as ratios in one run. `labels`: how good labels
and confidence are, by verbalizer and calibration, on corpora with gold. Prints a table and writes
the figures to FILE, and nothing else. Give it a quiet machine: it takes all of it.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Run one benchmark."""
    arguments = _parser().parse_args()
    from llkd.errors import LLKDError

    try:
        result, table = arguments.run(arguments)
    except LLKDError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(dest="what", required=True)
    teacher = what.add_parser("teacher", help="speed of the labelling stage")
    teacher.add_argument("--config", default="jobs/configs/bbc.yaml")
    teacher.add_argument("--rows", type=int, default=512, help="rows a contestant and round")
    teacher.add_argument("--rounds", type=int, default=3, help="figures are medians over these")
    teacher.set_defaults(run=_teacher)
    labels = what.add_parser("labels", help="quality of labels and confidence")
    labels.add_argument("configs", nargs="+", metavar="CONFIG")
    labels.add_argument("--rows", type=int, default=2000, help="rows of each corpus, at most")
    labels.add_argument("--verbalizers", help="'first token', word, code, sequence, by commas")
    labels.set_defaults(run=_labels)
    for one in (teacher, labels):
        one.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    return parser


def _teacher(arguments: argparse.Namespace) -> tuple[Any, str]:
    from llkd.benchmarks.teacher import benchmark_teacher, table
    from llkd.config_file import absolute_paths, load_config

    config = absolute_paths(load_config(arguments.config))
    result = benchmark_teacher(config, arguments.rows, arguments.rounds, _say)
    return result, table(result)


def _labels(arguments: argparse.Namespace) -> tuple[Any, str]:
    from llkd.benchmarks.labels import VERBALIZERS, measure_labels, table
    from llkd.config_file import absolute_paths, load_config

    configs = [absolute_paths(load_config(path)) for path in arguments.configs]
    verbalizers = VERBALIZERS if arguments.verbalizers is None else arguments.verbalizers.split(",")
    records = measure_labels(configs, verbalizers, arguments.rows, _say)
    return records, table(records)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
