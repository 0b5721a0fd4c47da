"""The run directory: where its files lie, how they are written, who may use it."""
