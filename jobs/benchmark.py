"""Benchmark LLKD against the alternatives.

    python jobs/benchmark.py teacher [--config jobs/configs/bbc.yaml] [--json FILE]
    python jobs/benchmark.py scoring [--config jobs/configs/bbc.yaml] [--json FILE]
    python jobs/benchmark.py training [--config jobs/configs/bbc.yaml] [--json FILE]
    python jobs/benchmark.py selection [--sizes 1e6,1e7] [--plot FILE] [--json FILE]
    python jobs/benchmark.py overhead [--config jobs/configs/bbc.yaml] [--json FILE]
    python jobs/benchmark.py labels CONFIG [CONFIG ...] [--json FILE]
    python jobs/benchmark.py control [--shards 1e4,1e5] [--json FILE]
    python jobs/benchmark.py control --fail 0.01 [--shards 2000] [--json FILE]

`teacher`, `scoring`, `training`: rows a second of the labelling stage, the student's uncertainty pass
and its training, as ratios to other tools. `selection`: rows a second and memory, by corpus size.
`overhead`: how a whole run spends its time. `labels`: quality of labels and confidence by verbalizer and
calibration, on corpora with gold labels. `control`: time and memory of the driver by number of shards,
without the work on a shard; with --fail, growth of memory and open files while shards are labelled and
that share of the calls kills its actor. Prints a table and writes the figures to FILE, nothing else.
Run it on a quiet machine: it uses all of it. What a run costs: `jobs/plan.py`.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

BENCHMARKS = {
    "teacher": "speed of the labelling stage",
    "scoring": "speed of the student's uncertainty pass",
    "training": "speed of the student's training",
    "selection": "speed and memory of selection, by rows",
    "overhead": "how a whole run spends its time",
    "labels": "quality of labels and confidence",
    "control": "time and memory of the driver, by shards",
}
"""The modules in llkd/lab/benchmarks: each has `add_arguments`, `run` and `table`."""


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(
        prog="jobs/benchmark.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_subparsers(dest="what", required=True)
    for name, about in BENCHMARKS.items():
        one = what.add_parser(name, help=about)
        one.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
        if name in sys.argv[1:2]:  # only now, because the modules import torch and Ray
            benchmark = import_module(f"llkd.lab.benchmarks.{name}")
            benchmark.add_arguments(one)
    arguments = parser.parse_args()
    from llkd.cli import reported_errors, write_figures

    with reported_errors():
        result = benchmark.run(arguments, lambda line: print(line, flush=True))
        print(benchmark.table(result))
        if arguments.json is not None:
            write_figures(arguments.json, result)


if __name__ == "__main__":
    main()
