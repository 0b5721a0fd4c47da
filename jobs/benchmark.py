"""Benchmark LLKD against the alternatives.

    python jobs/benchmark.py teacher [--config jobs/configs/bbc.yaml] [--json FILE]
    python jobs/benchmark.py scoring [--config jobs/configs/bbc.yaml] [--json FILE]
    python jobs/benchmark.py training [--config jobs/configs/bbc.yaml] [--json FILE]
    python jobs/benchmark.py selection [--sizes 1e6,1e7] [--plot FILE] [--json FILE]
    python jobs/benchmark.py overhead [--config jobs/configs/bbc.yaml] [--json FILE]
    python jobs/benchmark.py labels CONFIG [CONFIG ...] [--json FILE]
    python jobs/benchmark.py endurance [--shards 2000] [--fail 0.01] [--plot FILE] [--json FILE]
    python jobs/benchmark.py requests [--sizes 20,60] [--json FILE]
    python jobs/benchmark.py control [--shards 1e4,1e5] [--json FILE]

`teacher`, `scoring`, `training`: rows a second of the labelling stage, the student's uncertainty pass
and its training, as ratios to other tools. `selection`: rows a second and memory, by corpus size.
`overhead`: how a whole run spends its time. `labels`: quality of labels and confidence by verbalizer and
calibration, on corpora with gold. `endurance`: growth of memory and open files while shards are labelled
and actors die. `requests`: requests to an object store, by stage and shard. `control`: what the driver
does for each shard, without the work itself. Prints a table and writes the figures to FILE, nothing
else. Run it on a quiet machine: it uses all of it. What a run costs: `jobs/plan.py`.
"""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    """Run one benchmark."""
    arguments = _parser().parse_args()
    from llkd.cli import reported_errors, write_figures

    with reported_errors():
        result, table = arguments.run(arguments)
        print(table)
        if arguments.json is not None:
            write_figures(arguments.json, result)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jobs/benchmark.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_subparsers(dest="what", required=True)
    speeds = [
        _speed_parser(what, "teacher", "speed of the labelling stage", 512),
        _speed_parser(what, "scoring", "speed of the student's uncertainty pass", 2048, _PLAIN),
        _speed_parser(what, "training", "speed of the student's training", 1024, _PLAIN),
    ]
    selection = what.add_parser("selection", help="speed and memory of selecting, by rows")
    selection.add_argument(
        "--sizes", type=_sizes, default="1e6,1e7,5e7,2e8", help="rows, by commas"
    )
    selection.add_argument("--rows-per-shard", type=int, default=65536)
    selection.add_argument("--rounds", type=int, default=3, help="figures are medians over these")
    selection.add_argument("--plot", type=Path, metavar="FILE", help="where a plot goes (PNG)")
    selection.set_defaults(run=_selection)
    labels = what.add_parser("labels", help="quality of labels and confidence")
    labels.add_argument("configs", nargs="+", metavar="CONFIG")
    labels.add_argument("--rows", type=int, default=2000, help="rows of each corpus, at most")
    labels.add_argument("--verbalizers", help="'first token', word, code, sequence, by commas")
    labels.set_defaults(run=_labels)
    overhead = what.add_parser("overhead", help="what the time of a whole run goes into")
    overhead.add_argument("--config", default="jobs/configs/bbc.yaml")
    overhead.add_argument(
        "overrides", nargs="*", metavar="dotted.key=value", default=_TEN_MINUTES,
        help=f"settings that override those in the file ({' '.join(_TEN_MINUTES)})",
    )  # fmt: skip
    overhead.set_defaults(run=_overhead)
    endurance = what.add_parser("endurance", help="growth of memory and open files, by shards")
    endurance.add_argument("--shards", type=int, default=2000)
    endurance.add_argument("--rows-per-shard", type=int, default=64)
    endurance.add_argument("--fail", type=float, default=0.01, help="share of the calls that fail")
    endurance.add_argument("--plot", type=Path, metavar="FILE", help="where a plot goes (PNG)")
    endurance.set_defaults(run=_endurance)
    requests = what.add_parser("requests", help="requests to an object store, by stage and shard")
    requests.add_argument("--sizes", type=_two_sizes, default="20,60", help="numbers of shards")
    requests.set_defaults(run=_requests)
    control = what.add_parser("control", help="time and memory of the driver, by shards")
    control.add_argument("--shards", type=_sizes, default="1e4,1e5", help="shards, by commas")
    control.set_defaults(run=_control)
    for one in (
        *speeds,
        selection,
        overhead,
        labels,
        endurance,
        requests,
        control,
    ):
        one.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    return parser


_PLAIN = ("corpus.rows_per_shard=8192", "student.max_length=128")
"""LLKD's defaults instead of the small demo's settings."""

_TEN_MINUTES = ("teacher.max_text_tokens=128", "student.max_length=128", "student.epochs=7")
"""With these the demo takes about ten minutes on two cores."""


def _speed_parser(
    what: Any, name: str, about: str, rows: int, settings: tuple[str, ...] = ()
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = what.add_parser(name, help=about)
    parser.add_argument("--config", default="jobs/configs/bbc.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="dotted.key=value", default=settings,
        help=f"settings that override those in the file ({' '.join(settings) or 'none'})",
    )  # fmt: skip
    parser.add_argument("--rows", type=int, default=rows, help="rows a contestant and round")
    parser.add_argument("--rounds", type=int, default=3, help="figures are medians over these")
    parser.set_defaults(run=_speed)
    return parser


def _speed(arguments: argparse.Namespace) -> tuple[Any, str]:
    from llkd.config.load import load_config

    config = load_config(arguments.config, arguments.overrides)
    module = import_module(f"llkd.lab.benchmarks.{arguments.what}")
    measure = getattr(module, f"benchmark_{arguments.what}")
    result = measure(config, arguments.rows, arguments.rounds, _say)
    return result, module.table(result)


def _sizes(text: str) -> list[int]:
    sizes = sorted(int(float(size)) for size in text.split(","))
    if not sizes or sizes[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} are not numbers of rows or shards")
    return sizes


def _two_sizes(text: str) -> list[int]:
    sizes = sorted(set(_sizes(text)))
    if len(sizes) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} are not two numbers of shards")
    return sizes


def _selection(arguments: argparse.Namespace) -> tuple[Any, str]:
    from llkd.lab.benchmarks.selection import benchmark_selection, plot, table

    result = benchmark_selection(arguments.sizes, arguments.rows_per_shard, arguments.rounds, _say)
    if arguments.plot is not None:
        plot(result, arguments.plot)
    return result, table(result)


def _overhead(arguments: argparse.Namespace) -> tuple[Any, str]:
    from llkd.config.load import load_config
    from llkd.lab.benchmarks.overhead import benchmark_overhead, table

    config = load_config(arguments.config, arguments.overrides)
    result = benchmark_overhead(config, arguments.config, arguments.overrides, _say)
    return result, table(result)


def _labels(arguments: argparse.Namespace) -> tuple[Any, str]:
    from llkd.config.load import load_config
    from llkd.lab.benchmarks.labels import VERBALIZERS, measure_labels, table

    configs = [load_config(path) for path in arguments.configs]
    verbalizers = VERBALIZERS if arguments.verbalizers is None else arguments.verbalizers.split(",")
    records = measure_labels(configs, verbalizers, arguments.rows, _say)
    return records, table(records)


def _endurance(arguments: argparse.Namespace) -> tuple[Any, str]:
    from llkd.lab.benchmarks.endurance import benchmark_endurance, plot, table

    result = benchmark_endurance(arguments.shards, arguments.rows_per_shard, arguments.fail, _say)
    if arguments.plot is not None:
        plot(result, arguments.plot)
    return result, table(result)


def _requests(arguments: argparse.Namespace) -> tuple[Any, str]:
    from llkd.lab.benchmarks.requests import benchmark_requests, table

    result = benchmark_requests(arguments.sizes, _say)
    return result, table(result)


def _control(arguments: argparse.Namespace) -> tuple[Any, str]:
    from llkd.lab.benchmarks.control import benchmark_control, table

    result = benchmark_control(arguments.shards, _say)
    return result, table(result)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
