"""Estimates the cost of a run from a sample of its corpus."""
