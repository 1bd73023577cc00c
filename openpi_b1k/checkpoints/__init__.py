"""Checkpoints: saving and restoring states, and the names other implementations give the same arrays."""
