"""The console lines of an epoch."""

import os

from llkd.distill import worker
from llkd.distill.epoch_stats import notes

STATS = {
    "selected": 850, "rows": 1780, "fraction": 0.4775, "training_loss": 1.1, "validation": None,
    "classes": {"a": {"rows": 1000, "selected": 800}, "b": {"rows": 780, "selected": 50}},
}  # fmt: skip


def test_the_line_of_an_epoch() -> None:
    line = "epoch 1: 850 of 1,780 rows selected (47.8%), training loss 1.100"
    assert notes(0, STATS) == [line]
    held = {**STATS, "validation": {"accuracy": 0.91}}
    assert notes(0, held) == [f"{line}, agreement on rows held out 0.910"]


def test_a_label_that_is_not_trained_on_is_warned_of() -> None:
    classes = {
        **STATS["classes"], "c": {"rows": 1200, "selected": 0}, "d": {"rows": 0, "selected": 0},
    }  # type: ignore[dict-item]  # fmt: skip
    assert notes(2, {**STATS, "classes": classes})[1:] == [
        "warning: no row selected of c (of 1,200 labelled so), d (of 0 labelled so)"
    ]


def test_a_worker_takes_its_share_of_the_cpus_that_it_may_use() -> None:
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert worker._threads(1) == 1
    finally:
        os.sched_setaffinity(0, mine)
    assert worker._threads(1) == len(mine)
    assert worker._threads(2 * len(mine)) == 1
