"""The method, pure: numpy in, numpy out. No Ray, torch, vLLM or files."""
