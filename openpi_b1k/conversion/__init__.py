"""Checkpoints to PyTorch and back; no conversion counts before both models have computed the same numbers."""
