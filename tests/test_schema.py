"""Where things lie in a run directory."""

import pytest

from llkd.schema import RunLayout


@pytest.mark.parametrize("base", ["runs/x", "/data/runs/x", "s3://bucket/x", "x"])
def test_compared_runs_share_rows_and_labels_and_nothing_else(base: str) -> None:
    ours = RunLayout(base)
    run = RunLayout(ours.comparison("llkd-0"))
    assert run.root == f"{base}/compare/llkd-0"
    assert run.rows("corpus") == ours.rows("corpus") == f"{base}/corpus"
    assert run.labels("test") == ours.labels("test")
    assert RunLayout(run.root, 1).labels("corpus") == RunLayout(base, 1).labels("corpus")
    assert run.student == f"{base}/compare/llkd-0/student"
    assert run.uncertainty(0) == f"{base}/compare/llkd-0/epochs/00/uncertainty"
