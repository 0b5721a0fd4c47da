"""Distil a teacher into a student: all stages, each where the last run left it.

    python jobs/run.py jobs/configs/bbc.yaml [dotted.key=value ...]

Reads the corpus and the test set that the config names; writes everything into <run_dir>.
Safe to run again: what is there is not done twice.
"""

from llkd.cli import run_job

if __name__ == "__main__":
    run_job("run", __doc__)
