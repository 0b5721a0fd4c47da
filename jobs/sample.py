"""Choose rows of the corpus for a person to label.

    python jobs/sample.py jobs/configs/bbc.yaml --rows 100 [--blind] [dotted.key=value ...]

Half of the rows are drawn uniformly, half where the teacher and a probe on the student disagree most; before
the teacher has labelled the corpus, all are drawn uniformly. Writes <run_dir>/hand/sample-NN: CSV and Parquet with
an empty column `label`, and files to import into Argilla and Label Studio. Never replaces an earlier sample. Give the
filled file back as `gold` (docs/hand-labels.md).
"""

from llkd.cli import run_row_job

if __name__ == "__main__":
    run_row_job("sample", __doc__, 100, ("blind", "leave out what the teacher says"))
