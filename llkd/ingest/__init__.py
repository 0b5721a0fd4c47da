"""The caller's files become corpus shards."""
