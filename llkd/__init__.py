"""LLKD: distil a large language model into a small text classifier, from unlabelled text."""

__version__ = "0.1.0"
