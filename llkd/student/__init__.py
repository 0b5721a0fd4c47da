"""The student: its model, its scoring of texts, and the training of one worker."""
