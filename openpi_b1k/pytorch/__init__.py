"""Inference in plain PyTorch, from a converted checkpoint; loads no JAX."""
