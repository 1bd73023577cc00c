"""pi0.5 as NNX modules; outside this folder parameters are plain nested dicts of arrays."""
