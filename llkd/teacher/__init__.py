"""Engines that read a teacher's log-probability of every label, behind one small protocol."""
