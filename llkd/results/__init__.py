"""What a run yields: student, predictions, evaluation, report, export."""
