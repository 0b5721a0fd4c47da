"""A comparison of contestants that do the same work on the same texts.

Each contestant runs in its own process. Rounds alternate between them, so that a machine that slows
down slows all of them; the ratios are taken within a round. A benchmark module
names its contestants and ends in `serve`.
"""

import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llkd.config.run import RunConfig
from llkd.lab.benchmarks.processes import results_of, send

PIECE = 240
"""Characters of a piece."""

Contestant = Callable[[RunConfig, Path], float]
"""Does the work on the data at a path, as a config says; returns rows a second."""
Rates = dict[str, list[float]]
"""Rows a second of each contestant, round by round."""


def race(
    module: str,
    config: RunConfig,
    data: Path,
    contestants: Sequence[str],
    rounds: int,
    say: Callable[[str], None],
    *,
    what: str,
    environment: Mapping[str, str] | None = None,
) -> Rates:
    """Run each contestant of a benchmark module once per round.

    Args:
        module: the full name of the module that serves the contestants.
        config: of the contestants.
        data: path of their input.
        contestants: their names.
        rounds: number of rounds.
        say: prints a line of progress.
        what: the measurement, for these lines.
        environment: variables of their processes, in addition to those of this one.
    """
    rates: Rates = {name: [] for name in contestants}
    for number in range(rounds):
        for name in contestants:
            rate = run_contestant(module, name, config, data, environment or {})
            rates[name].append(rate)
            say(f"round {number + 1} of {rounds}, {what}: {name} {rate:.1f} rows/s")
    return rates


def run_contestant(
    module: str, name: str, config: RunConfig, data: Path, environment: Mapping[str, str]
) -> float:
    """Run a contestant in a process of its own; returns rows a second.

    Raises:
        IncompleteError: it failed.
    """
    spec = json.dumps({"config": config.model_dump(mode="json"), "data": str(data)})
    (rate,) = results_of(module, name, stdin=spec, environment=environment)
    return float(rate)


def serve(contestants: Mapping[str, Contestant]) -> None:
    """The process of `run_contestant`: runs the contestant that the command line names."""
    spec = json.load(sys.stdin)
    config = RunConfig.model_validate(spec["config"])
    send(contestants[sys.argv[1]](config, Path(spec["data"])))


def ratio(rates: Mapping[str, Sequence[float]], other: str) -> float:
    """The median over rounds of our rate divided by another's."""
    pairs = zip(rates["ours"], rates[other], strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def table(columns: Mapping[str, Mapping[str, Sequence[float]]], result: Mapping[str, Any]) -> str:
    """The figures as text.

    Args:
        columns: rates of the contestants, by heading; the first column has all contestants.
        result: has `ratios` and `rounds`.
    """
    contestants = next(iter(columns.values()))
    width = max(14, *(len(name) + 1 for name in contestants))
    lines = [" " * width + "".join(f"{name:>22}" for name in columns)]
    for name in contestants:
        cells = []
        for rates in columns.values():
            if name not in rates:
                cells.append(f"{'':>22}")
                continue
            low, high = min(rates[name]), max(rates[name])
            cells.append(f"{statistics.median(rates[name]):9.1f} ({low:.1f}-{high:.1f})".rjust(22))
        lines.append(f"{name:{width}}" + "".join(cells))
    ratios = ", ".join(f"{name} {value:.2f}" for name, value in result["ratios"].items())
    return "\n".join([*lines, f"rows/s, median (range) of {result['rounds']} rounds; {ratios}"])


Cut = Callable[[str], list[str]]
"""Cuts a text of the corpus into rows."""


def whole(text: str) -> list[str]:
    """The text as it is."""
    return [text]


def pieces(text: str) -> list[str]:
    """Pieces of equal length, for a corpus with too few texts."""
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]


def paragraphs(text: str) -> list[str]:
    """Parts between blank lines, of natural lengths."""
    return re.split(r"\n\s*\n", text)


def write_texts(config: RunConfig, path: Path, rows: int, cut: Cut) -> int:
    """Write up to `rows` different rows made of the corpus's texts; returns their number.

    No row repeats, so that none is answered from a cache.
    """
    from llkd.ingest.files import list_files
    from llkd.ingest.sources import as_text, read_rows

    texts: dict[str, None] = {}
    for file in list_files(config.corpus, "corpus"):
        for row in read_rows(file, config.corpus, 0, 2**62):
            parts = (part.strip() for part in cut(as_text(row.text) or ""))
            texts |= dict.fromkeys(part for part in parts if part)
            if len(texts) >= rows:
                break
    usable = list(texts)[:rows]
    pq.write_table(pa.table({"text": usable}), path)
    return len(usable)


def read_texts(path: Path) -> list[str]:
    """Read the rows that `write_texts` wrote."""
    return list(pq.read_table(path)["text"].to_pylist())
