"""pi0.5 for BEHAVIOR-1K in JAX/Flax: train it, act with it, evaluate it."""
