"""Measure teacher and student, and show the summary.

    python jobs/evaluate.py jobs/configs/bbc.yaml [dotted.key=value ...]

Reads all that the other stages left, writes <run_dir>/metrics.json.
Safe to run again: what is there is not done twice.
"""

from llkd.cli import run_job

if __name__ == "__main__":
    run_job("evaluate", __doc__)
