"""Bytes of the tables of a run directory, measured."""

from llkd.config.run import RunConfig

CORPUS_FIXED, LABELS_FIXED, NUMBERS_FIXED, UNCERTAINTY_FIXED = 1000, 1000, 600, 500
"""Bytes of a shard without rows: schema, footer, page headers."""
COLUMN_FIXED = 270
"""The same for an optional column of the corpus: identifiers, gold labels."""
LABELS_ROW, LABELS_CLASS = 9.5, 5.2
"""Bytes of a row of log-probabilities, and of each of its labels: they hardly compress."""
PSEUDO_LABELS_ROW, UNCERTAINTY_ROW, SELECTION_ROW, PREDICTIONS_ROW = 4.6, 4.05, 5.3, 9.6
"""Bytes of a row in the tables of numbers."""
RECORD_BYTES = 80
"""Bytes of a file's entry in checksums.json and in the manifest beside it."""


def corpus_fixed(config: RunConfig) -> float:
    """Bytes of a shard of the corpus without rows."""
    optional = (config.corpus.id_column, config.corpus.label_column)
    return CORPUS_FIXED + COLUMN_FIXED * sum(column is not None for column in optional)
