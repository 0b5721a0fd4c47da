"""Comparing policies: many runs on the same labels, by fine-tuning or on a frozen student."""
