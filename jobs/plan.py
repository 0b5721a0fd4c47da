"""See what a run will take before it is begun: prompts, speed, hours, cost, files, warning signs.

    python jobs/plan.py jobs/configs/bbc.yaml [plan.price_per_hour=2.5 teacher.replicas=[1,8]]
    python jobs/plan.py jobs/configs/bbc.yaml plan.corpus_rows=1e9 --json FILE

Labels a sample of the corpus with one replica, and trains a student on it. Keeps nothing but a log,
and the figures in FILE. Safe to run again.
"""

from typing import Any

from rich.console import Console

from llkd.cli import run_job
from llkd.config import RunConfig


def plan(config: RunConfig, console: Console) -> dict[str, Any]:
    """Measure a sample; returns the estimate as plain values."""
    from llkd.lab.plan import run_plan  # only now: it imports Ray

    return run_plan(config, console)


if __name__ == "__main__":
    run_job("plan", __doc__, plan)
