"""Cut the corpus and the test set into shards.

    python jobs/ingest.py jobs/configs/bbc.yaml [dotted.key=value ...]

Reads the files that the config names, writes <run_dir>/corpus, <run_dir>/test and <run_dir>/rejects.
Safe to run again: only what is missing is done.
"""

from llkd.cli import run_job

if __name__ == "__main__":
    run_job("ingest", __doc__)
