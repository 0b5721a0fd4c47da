"""Ray: connect to it, reserve its resources, map shards over it, report progress."""
