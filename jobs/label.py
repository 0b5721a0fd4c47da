"""Label the corpus and the test set with the teacher.

    python jobs/label.py jobs/configs/bbc.yaml [dotted.key=value ...]

Reads <run_dir>/corpus and <run_dir>/test, writes <run_dir>/labels and <run_dir>/test_labels, a file per shard.
With label.budget below 1, labels a part of the corpus, in rounds that are kept in <run_dir>/rounds.
Safe to run again: only what is missing is done.
"""

from llkd.cli import run_job

if __name__ == "__main__":
    run_job("label", __doc__)
