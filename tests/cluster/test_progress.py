"""The counts of the progress tracker, and their display."""

import io
import re
import sys
from dataclasses import replace

import pytest
from rich.cells import cell_len
from rich.console import Console

from llkd.cluster.display import (
    BAR,
    INDENT,
    ProgressDisplay,
    closing_line,
    running_line,
    short_name,
)
from llkd.cluster.progress import Pace, PhaseState, ProgressTracker, duration
from llkd.cluster.telemetry import ShardDone, Work
from llkd.ingest.stage import ingest
from llkd.teacher.stage import label
from tests.conftest import MakeConfig

TRAINING = PhaseState(
    "epoch 4/4 training", 1780, 12345, 0, 60.0, 107.3, False, rejects=12, loss=1.1041,
    actors="worker",
)  # fmt: skip
LABELLED = PhaseState("label", 2000, 2000, 500, 150.0, 10.0, ended=True)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            running_line(PhaseState("label", 500, 2000, 100, 60.0, 10.0, ended=False)),
            "500 of 2,000 rows, 10.0 rows/s, 2.5 min left",
        ),
        (
            running_line(PhaseState("label", 0, 2000, 0, 7.0, None, ended=False)),
            "0 of 2,000 rows, starting (7 s)",
        ),
        (
            running_line(TRAINING, 2),
            "1,780 of 12,345 rows, 107.3 rows/s, 1.6 min left, loss 1.104, 12 rejected, 2 workers",
        ),
        (
            running_line(replace(TRAINING, rejects=0, loss=None), 1),
            "1,780 of 12,345 rows, 107.3 rows/s, 1.6 min left, 1 worker",
        ),
        (running_line(TRAINING, 2, 56), "1,780 of 12,345 rows, 1.6 min left, 12 rejected"),
        (running_line(TRAINING, 2, 10), "1,780 of 12,345 rows"),
        (
            closing_line(LABELLED),
            "label: 2,000 rows (500 of them done before) in 2.5 min, 10.0 rows/s",
        ),
        (
            closing_line(replace(LABELLED, rejects=3)),
            "label: 2,000 rows (500 of them done before) in 2.5 min, 10.0 rows/s, 3 rejected",
        ),
        (
            closing_line(replace(LABELLED, rejects=3), 60),
            "label: 2,000 rows in 2.5 min, 3 rejected",
        ),
    ],
)
def test_lines_of_a_phase(line: str, expected: str) -> None:
    assert line == expected


def test_running_line_says_what_the_first_row_waits_for() -> None:
    tracker = new_tracker()
    tracker.begin("label", 100)
    tracker.waits_for("loading the model")
    assert running_line(tracker.since(0)[0]) == "0 of 100 rows, loading the model (0 s)"
    tracker.begin("train", 100)
    assert running_line(tracker.since(1)[0]) == "0 of 100 rows, starting (0 s)"


def test_durations() -> None:
    assert [duration(s) for s in (3.4, 89, 90, 7200)] == ["3 s", "89 s", "1.5 min", "2.0 h"]


def test_the_rate_of_actors_is_from_the_first_row_of_any_to_the_last() -> None:
    pace = Pace()
    assert pace.rows_per_second is None
    pace.add({"rows": 60, "started": 102.0, "ended": 110.0})
    pace.add({"rows": 40, "started": 100.0, "ended": 104.0})
    pace.add({"rows": 0, "started": 103.0, "ended": 103.0})
    assert pace.rows_per_second == 10.0


def test_a_repeated_update_of_a_unit_counts_once() -> None:
    tracker = new_tracker()
    tracker.begin("label", 100, 20)
    for unit, rows in (("a", 10), ("b", 5), ("a", 30), ("a", 30), ("b", 8)):
        tracker.update(unit, rows)
    assert [state.rows for state in tracker.since(0)] == [20 + 30 + 8]


def new_tracker() -> ProgressTracker:
    return ProgressTracker.__ray_metadata__.modified_class()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["label", "epoch 10/10 training", "label by models/" + "某" * 60])
@pytest.mark.parametrize("columns", [60, 80, 100, 120, 200])
def test_the_live_line_fits(name: str, columns: int) -> None:
    room = columns - len(INDENT) - cell_len(short_name(name)) - BAR[0] - 2
    for rows, rate in ((0, None), (5, None), (10**10, 12345.6)):
        state = replace(TRAINING, rows=rows, total=10**11, rate=rate)
        assert cell_len(running_line(state, 1024, room)) <= max(room, 38)


def test_a_long_name_is_cut_in_the_middle() -> None:
    assert short_name("label by meta/" + "x" * 40 + "-8B") == "label by meta/xxx…xxxxxxxxxxxxxxx-8B"


def test_the_rejects_of_a_repeated_shard_count_once() -> None:
    tracker = new_tracker()
    tracker.begin("label", 100, 20, "replica")
    for shard, rejects in ((0, {"refused": 2, "no_rule": 1}), (1, {}), (0, {"refused": 4})):
        tracker.shard(ShardDone(Work("r", "label", "corpus"), shard, 10, 1.0, rejects))
    tracker.update("a", 5, loss=0.5)
    tracker.update("b", 5)
    (state,) = tracker.since(0)
    assert (state.rejects, state.loss, state.actors) == (4, 0.5, "replica")


def test_what_has_no_rows_to_count_is_shown_and_leaves_no_line() -> None:
    tracker = new_tracker()
    tracker.doing("epoch 1/4 selection")
    assert running_line(tracker.since(0)[0]) == "0 s"
    tracker.begin("label", 100)
    assert [state.silent for state in tracker.since(0)] == [True, False]


def watched(console: Console, make_config: MakeConfig) -> None:
    config = make_config(
        test=None, corpus={"rows_per_shard": 60},
        teacher={"engine_args": {"refuse": "n77", "delay": 0.01}},
    )  # fmt: skip
    with ProgressDisplay(console) as display:
        ingest(config, "corpus", display.tracker)
        print("what a library says", file=sys.stderr)
        print("and prints")
        label(config, ["corpus"], display.tracker)


@pytest.mark.usefixtures("local_ray")
def test_a_terminal_shows_a_live_line_and_nothing_of_the_libraries(
    make_config: MakeConfig,
) -> None:
    screen = io.StringIO()
    watched(Console(file=screen, force_terminal=True, width=80, soft_wrap=True), make_config)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", plain)]
    assert "library" not in plain
    assert "and prints" not in plain
    assert max(map(cell_len, lines)) <= 80
    assert any(re.fullmatch(r"  label [━╸╺ ]+ [\d,]+.* rows.* 1 replica", line) for line in lines)
    assert any(re.fullmatch(r"  label: 420 rows in .*, 1 rejected", line) for line in lines)
    assert not any(line.startswith("  ingest corpus: the files") for line in lines[-3:])
