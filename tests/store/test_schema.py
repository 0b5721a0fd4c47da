"""The folders of a run directory."""

import pytest

from llkd.store.schema import RunLayout


@pytest.mark.parametrize("base", ["runs/x", "/data/runs/x", "s3://bucket/x", "x"])
def test_comparisons_share_only_rows_and_labels(base: str) -> None:
    ours = RunLayout(base)
    run = RunLayout(ours.comparison("llkd-0"))
    assert run.root == f"{base}/compare/llkd-0"
    assert run.rows("corpus") == ours.rows("corpus") == f"{base}/corpus"
    assert run.labels("test") == ours.labels("test")
    assert RunLayout(run.root, 1).labels("corpus") == RunLayout(base, 1).labels("corpus")
    assert run.student == f"{base}/compare/llkd-0/student"
    assert run.uncertainty(0) == f"{base}/compare/llkd-0/epochs/00/uncertainty"


@pytest.mark.parametrize("base", ["runs/x", "/data/runs/x", "s3://bucket/x", "x"])
def test_a_round_shares_rows_and_has_its_own_labels(base: str) -> None:
    ours = RunLayout(base)
    run = ours.round(2)
    assert run.root == f"{base}/rounds/02"
    assert (ours.is_round, run.is_round) == (False, True)
    assert run.rows("corpus") == ours.rows("corpus")
    assert run.labels("corpus") == f"{base}/rounds/02/labels"
    assert run.labels("test") == ours.labels("test")
    assert run.teacher_choices == ours.labels("corpus")
    assert run.answers == f"{base}/rounds/02/answers"
    assert run.wanted == f"{base}/rounds/02/wanted"
    assert run.label_rejects("test") == ours.label_rejects("test")
    assert run.label_rejects("corpus") == f"{base}/rounds/02/rejects/label-corpus"
    assert run.round(0) == ours.round(0) == RunLayout(ours.comparison("llkd-0")).round(0)
    assert run.owner == ours.owner == ours
