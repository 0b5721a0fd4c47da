"""Measure teacher and student, and show the summary.

    python jobs/evaluate.py jobs/configs/bbc.yaml [dotted.key=value ...]

Reads the results of the other stages, writes <run_dir>/metrics.json and <run_dir>/report.html.
Safe to run again: only what is missing is done.
"""

from llkd.cli import run_job

if __name__ == "__main__":
    run_job("evaluate", __doc__)
