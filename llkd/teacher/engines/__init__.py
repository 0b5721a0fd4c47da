"""Engines that run a teacher: vLLM, transformers, OpenAI-compatible endpoints, tables of labels."""
