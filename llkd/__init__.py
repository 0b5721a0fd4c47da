"""LLKD: distil a large language model into a small text classifier, from unlabelled text."""

from llkd.cluster import environment as environment

__version__ = "0.1.0"
