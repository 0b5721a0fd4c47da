from llkd.progress import Pace, PhaseState, ProgressTracker, closing_line, duration, running_line


def test_running_line_has_rate_and_time_left() -> None:
    state = PhaseState("label", 500, 2000, 100, 60.0, 10.0, ended=False)
    assert running_line(state) == "500 of 2,000 rows, 10.0 rows/s, 2.5 min left"


def test_running_line_before_the_first_row() -> None:
    assert running_line(PhaseState("label", 0, 2000, 0, 7.0, None, ended=False)) == (
        "0 of 2,000 rows, starting (7 s)"
    )


def test_closing_line_tells_what_was_done_before() -> None:
    state = PhaseState("label", 2000, 2000, 500, 150.0, 10.0, ended=True)
    assert closing_line(state) == (
        "label: 2,000 rows (500 of them done before) in 2.5 min, 10.0 rows/s"
    )


def test_durations() -> None:
    assert [duration(s) for s in (3.4, 89, 90, 7200)] == ["3 s", "89 s", "1.5 min", "2.0 h"]


def test_the_rate_of_actors_is_from_the_first_row_of_any_to_the_last() -> None:
    pace = Pace()
    assert pace.rows_per_second is None
    pace.add({"rows": 60, "started": 102.0, "ended": 110.0})
    pace.add({"rows": 40, "started": 100.0, "ended": 104.0})
    pace.add({"rows": 0, "started": 103.0, "ended": 103.0})
    assert pace.rows_per_second == 10.0


def test_a_unit_that_is_told_again_counts_once() -> None:
    tracker = ProgressTracker.__ray_metadata__.modified_class()  # type: ignore[attr-defined]
    tracker.begin("label", 100, 20)
    for unit, rows in (("a", 10), ("b", 5), ("a", 30), ("a", 30), ("b", 8)):
        tracker.update(unit, rows)
    assert [state.rows for state in tracker.since(0)] == [20 + 30 + 8]
