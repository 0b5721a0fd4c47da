"""Rows for a person to label, and what their labels say of the corpus."""
