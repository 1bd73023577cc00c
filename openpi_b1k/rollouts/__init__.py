"""What comes out of rollouts: results in the official layouts, scores, intervals, recordings. NumPy, no JAX."""
