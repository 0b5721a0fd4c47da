"""Pseudo-labels become a student: score, select, train, every epoch."""
