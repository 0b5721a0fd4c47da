"""Train the student on rows selected anew each epoch, and save it.

    python jobs/distill.py jobs/configs/bbc.yaml [dotted.key=value ...]

Reads <run_dir>/corpus and <run_dir>/labels, writes <run_dir>/epochs, <run_dir>/checkpoints and <run_dir>/student.
Safe to run again: only what is missing is done.
"""

from llkd.cli import run_job

if __name__ == "__main__":
    run_job("distill", __doc__)
