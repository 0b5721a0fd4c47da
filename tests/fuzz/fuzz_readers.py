"""Coverage-guided fuzzing of the readers, by hand: not a test, and no part of CI.

    pip install atheris
    python tests/fuzz/fuzz_readers.py -max_total_time=300 [CORPUS_FOLDER]

The first byte of an input chooses the format, the rest is the file. What is neither rows nor an
LLKDError ends the run; libFuzzer then leaves the input in ./crash-*, which it takes as an argument.
"""

import os
import sys
import tempfile

import atheris

with atheris.instrument_imports(include=["llkd"]):
    from llkd.config.sources import SourceConfig
    from llkd.errors import LLKDError
    from llkd.ingest import files, sources
    from llkd.ingest.stage import usable_text

NAMES = ("x.csv", "x.jsonl", "x.parquet", "x.csv.gz", "x.jsonl.zst")
FOLDER = tempfile.mkdtemp(prefix="llkd-fuzz-")


def fuzz(data: bytes) -> None:
    """Read one file as ingest does."""
    path = os.path.join(FOLDER, NAMES[data[0] % len(NAMES)] if data else NAMES[0])
    with open(path, "wb") as file:
        file.write(data[1:])
    source = SourceConfig(path=path, id_column="id", label_column="label")
    try:
        (file_,) = files.list_files(source, "corpus")
        sources.check_columns(file_, source, "corpus")
    except LLKDError:
        source = SourceConfig(path=path)  # whatever columns there are
    try:
        (file_,) = files.list_files(source, "corpus")
        count = sources.count_rows(file_, source)
        rows = list(sources.read_rows(file_, source, 0, count))
    except LLKDError:
        return
    assert [row.number for row in rows] == list(range(count))
    for row in rows:
        text, reason, _ = usable_text(row)
        assert (text is None) != (reason is None)
        for value in (row.id, row.gold):
            (sources.as_text(value) or "").encode()


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
