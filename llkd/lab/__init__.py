"""Experiments around runs: plan, benchmark, compare, inject faults."""
