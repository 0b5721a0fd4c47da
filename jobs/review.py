"""List the rows whose label is most probably wrong, for a person to correct.

    python jobs/review.py jobs/configs/bbc.yaml --rows 50 [dotted.key=value ...]

Needs a labelled corpus. A probe on the student judges rows that it was not fitted to; those on which it most contradicts
the teacher come first, with both answers. Writes <run_dir>/hand/review-NN, in the formats of jobs/sample.py. Corrections
come back the same way (docs/hand-labels.md); as they were not drawn at random, they are learnt and never judge.
"""

from llkd.cli import run_row_job

if __name__ == "__main__":
    run_row_job("review", __doc__, 50)
