"""See what labelling will take before it is begun: prompts, speed, hours, cost, warning signs.

    python jobs/plan.py jobs/configs/bbc.yaml [plan.price_per_hour=2.5 teacher.replicas=[1,8]]

Labels a sample of the corpus with one replica. Keeps nothing but a log. Safe to run again.
"""

from llkd.cli import run_job

if __name__ == "__main__":
    run_job("plan", __doc__)
