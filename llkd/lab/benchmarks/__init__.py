"""Benchmarks of LLKD, as ratios to the alternatives measured in the same run."""
