"""The run directory: its layout, atomic writes, and locks."""
