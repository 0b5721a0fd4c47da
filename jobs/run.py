"""Distil a teacher into a student: all stages, each resumed where the last run ended.

    python jobs/run.py jobs/configs/bbc.yaml [dotted.key=value ...]

Reads the corpus and the test set that the config names; writes everything into <run_dir>.
Safe to run again: only what is missing is done.
"""

from llkd.cli import run_job

if __name__ == "__main__":
    run_job("run", __doc__)
