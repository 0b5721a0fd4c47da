"""Bytes of the tables of a run directory, measured."""

CORPUS_FIXED, LABELS_FIXED, NUMBERS_FIXED, UNCERTAINTY_FIXED = 1000, 1000, 600, 500
"""Bytes of a shard without rows: schema, footer, page headers."""
LABELS_ROW, LABELS_CLASS = 9.5, 5.2
"""Bytes of a row of log-probabilities, and of each of its labels: they hardly compress."""
PSEUDO_LABELS_ROW, UNCERTAINTY_ROW, SELECTION_ROW, PREDICTIONS_ROW = 4.6, 4.05, 5.3, 9.6
"""Bytes of a row in the tables of numbers."""
RECORD_BYTES = 80
"""Bytes of a file's entry in checksums.json and in the manifest beside it."""
