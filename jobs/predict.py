"""Label a whole corpus with the finished student.

    python jobs/predict.py jobs/configs/bbc.yaml [dotted.key=value ...]
    python jobs/predict.py jobs/configs/bbc.yaml predict.path='data/new/*.parquet' predict.id_column=id

Reads <run_dir>/corpus, or the files of predict.path, writes <run_dir>/predictions/NAME, a file per shard.
Safe to run again: only what is missing is done.
"""

from llkd.cli import run_job

if __name__ == "__main__":
    run_job("predict", __doc__)
