"""See what a run will take before it is begun: prompts, speed, hours, cost, files, warning signs.

    python jobs/plan.py jobs/configs/bbc.yaml [plan.price_per_hour=2.5 teacher.replicas=[1,8]]
    python jobs/plan.py jobs/configs/bbc.yaml plan.corpus_rows=1e9 --json FILE

Labels a sample of the corpus with one replica, and trains a student on it. Keeps nothing but a log,
and the figures in FILE. Safe to run again.
"""

from llkd.cli import run_job

if __name__ == "__main__":
    run_job("plan", __doc__, figures=True)
