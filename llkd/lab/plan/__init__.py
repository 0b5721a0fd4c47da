"""What a run will take, from a sample of its corpus, before money is spent."""
