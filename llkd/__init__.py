"""LLKD: distil a large language model into a small text classifier, from unlabelled text."""

from llkd import local_ray as local_ray

__version__ = "0.1.0"
