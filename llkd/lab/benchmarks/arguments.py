"""Command line arguments that several benchmarks share."""

import argparse
from collections.abc import Sequence

from llkd.config.load import load_config
from llkd.config.run import RunConfig

DEFAULTS = ("corpus.rows_per_shard=8192", "student.max_length=128")
"""LLKD's defaults instead of the small demo's settings."""


def add_config(parser: argparse.ArgumentParser, settings: Sequence[str] = ()) -> None:
    """Add `--config` and overrides of its settings.

    Args:
        parser: of the benchmark.
        settings: the overrides if the command line has none.
    """
    parser.add_argument("--config", default="jobs/configs/bbc.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="dotted.key=value", default=settings,
        help=f"settings that override those in the file ({' '.join(settings) or 'none'})",
    )  # fmt: skip


def config_of(arguments: argparse.Namespace) -> RunConfig:
    """The config that the arguments of `add_config` describe."""
    return load_config(arguments.config, arguments.overrides)


def add_rounds(parser: argparse.ArgumentParser) -> None:
    """Add `--rounds`."""
    parser.add_argument("--rounds", type=int, default=3, help="figures are medians over these")


def add_speed(
    parser: argparse.ArgumentParser, rows: int, settings: Sequence[str] = DEFAULTS
) -> None:
    """Add the arguments of a benchmark that compares rows a second; `rows` is the default."""
    add_config(parser, settings)
    parser.add_argument("--rows", type=int, default=rows, help="rows per contestant and round")
    add_rounds(parser)


def parse_sizes(text: str) -> list[int]:
    """Parse numbers of rows or shards, such as `1e4,1e5`, ascending."""
    found = sorted(int(float(size)) for size in text.split(","))
    if found[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} are not numbers of rows or shards")
    return found
