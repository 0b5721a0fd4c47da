"""A comparison of contestants that do the same work on the same texts.

Each contestant runs in its own process. Rounds alternate between them, so that a machine that slows
down slows all of them; the ratios are taken within a round. A benchmark module
names its contestants and ends in `serve`.
"""

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llkd.config.run import RunConfig

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
    """Let each contestant of a benchmark module run once a round.

    Args:
        module: the module that serves the contestants, by its full name.
        config: what they work by.
        data: what they work on.
        contestants: their names.
        rounds: how often each runs.
        say: prints a line of progress.
        what: what is measured, for these lines.
        environment: variables of their processes, beside those of this one.
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
    """One run in a process of its own; rows a second.

    Raises:
        RuntimeError: it ended without a rate.
    """
    spec = json.dumps({"config": config.model_dump(mode="json"), "data": str(data)})
    done = subprocess.run(
        [sys.executable, "-m", module, name],
        input=spec, capture_output=True, text=True, env={**os.environ, **environment},
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith("RATE "):
            return float(line.split()[1])
    raise RuntimeError(f"The contestant {name} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def serve(contestants: Mapping[str, Contestant]) -> None:
    """The process of `run_contestant`: runs the contestant that the command line names."""
    spec = json.load(sys.stdin)
    config = RunConfig.model_validate(spec["config"])
    print("RATE", contestants[sys.argv[1]](config, Path(spec["data"])), flush=True)


def ratio(rates: Mapping[str, Sequence[float]], other: str) -> float:
    """The median over rounds of ours divided by another's, for both met the same machine."""
    pairs = zip(rates["ours"], rates[other], strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def table(columns: Mapping[str, Mapping[str, Sequence[float]]], result: Mapping[str, Any]) -> str:
    """The figures, for people.

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
"""Makes rows of a text of the corpus."""


def whole(text: str) -> list[str]:
    """The text as it is."""
    return [text]


def pieces(text: str) -> list[str]:
    """Pieces of the same length, where the texts are too few."""
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]


def paragraphs(text: str) -> list[str]:
    """What stands between blank lines: rows as different in length as people write them."""
    return re.split(r"\n\s*\n", text)


def write_texts(config: RunConfig, path: Path, rows: int, cut: Cut) -> int:
    """Up to so many rows made of the corpus's texts; no two the same, so that none is in a cache.
    Returns how many there are."""
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
    """What `write_texts` wrote."""
    return list(pq.read_table(path)["text"].to_pylist())
