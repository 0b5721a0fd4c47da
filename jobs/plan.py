"""Estimate a run before it starts: prompts, speed, hours, cost, files, warning signs.

    python jobs/plan.py jobs/configs/bbc.yaml [plan.price_per_hour=2.5 teacher.replicas=[1,8]]
    python jobs/plan.py jobs/configs/bbc.yaml plan.corpus_rows=1e9 --json FILE

Labels a sample of the corpus with one replica and trains a student on it. Keeps nothing but a log and
the figures in FILE. Safe to run again. Rates that are known are not measured:

    python jobs/plan.py jobs/configs/bbc.yaml plan.teacher_rows_per_second=200 \\
        plan.score_rows_per_second=4000 plan.train_rows_per_second=1000
"""

from typing import Any

from rich.console import Console

from llkd.cli import run_job
from llkd.config import RunConfig


def plan(config: RunConfig, console: Console) -> dict[str, Any]:
    """Measure a sample; returns the estimate as plain values."""
    from llkd.lab.plan.plan import run_plan  # only now: it imports Ray

    return run_plan(config, console)


if __name__ == "__main__":
    run_job("plan", __doc__, plan)
