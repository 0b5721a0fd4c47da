"""Export a finished run: the student and the labelled rows with their cards, for the hub or a disk.

    python jobs/export.py jobs/configs/bbc.yaml [dotted.key=value ...]
    python jobs/export.py jobs/configs/bbc.yaml export.onnx=true export.license=apache-2.0
    python jobs/export.py jobs/configs/bbc.yaml export.push_to_hub=true \\
        export.model_repo=me/topics export.dataset_repo=me/topics-labelled

Reads <run_dir>/student, corpus, labels and metrics.json, writes <run_dir>/export or export.folder.
Safe to run again: what is there is not done twice; an older export is replaced as a whole.
"""

from llkd.cli import run_job

if __name__ == "__main__":
    run_job("export", __doc__)
