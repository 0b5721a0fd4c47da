"""`jobs/report.py`, a report of many shards, and a report that fails."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

import llkd.results.report
from llkd.cluster.shard_tasks import FEW_SHARDS
from llkd.pipeline import make_report
from llkd.results.report.facts import gather
from tests.conftest import ROOT
from tests.results.report import made
from tests.results.report.test_facts import config_of, rows, shown, teacher_probs


def test_a_missing_run(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run").model_dump(mode="json")
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({**config, "run_dir": str(tmp_path / "no")})
    )
    job = subprocess.run(
        [sys.executable, "jobs/report.py", str(tmp_path / "config.yaml")], cwd=ROOT, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert job.returncode == 2
    assert job.stderr == (
        f"ConfigError: There is no run in {tmp_path}/no: it has no run.yaml.\n"
        "  Run jobs/run.py first, or correct run_dir.\n"
    )
    assert not (tmp_path / "no").exists()


def test_a_report_that_fails_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: object) -> None:
        raise ZeroDivisionError("a [bug]")

    monkeypatch.setattr(llkd.results.report, "write_report", broken)
    screen = io.StringIO()
    make_report(config_of(tmp_path / "run"), Console(file=screen, width=200))
    assert "report.html could not be made (ZeroDivisionError: a [bug])" in screen.getvalue()


@pytest.mark.usefixtures("local_ray")
def test_tasks_sum_over_many_shards(tmp_path: Path) -> None:
    times = FEW_SHARDS // 2 + 2
    config = config_of(tmp_path / "run", test=None)
    made.ingested(config, "corpus", [*rows()] * times)
    made.labelled(config, "corpus", teacher_probs() * times)
    made.trained(config, 0, [np.linspace(0, 1, 6)] * (2 * times))
    for shard in range(2 * times):
        reason = "odd" if shard % 2 else "empty text"
        made.rejected(config, "label-corpus", [{"row": 1, "reason": reason}], shard)
    facts = gather(config)
    assert facts.errors == []
    assert facts.corpus["rows_c"].tolist() == [2 * times, 5 * times, 5 * times]
    assert facts.epochs["visits_ce"].sum() == 12 * times
    assert facts.rejects == {"label-corpus: empty text": times, "label-corpus: odd": times}
    assert "Which rows should I look at?" in shown(facts)
