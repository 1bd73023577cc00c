"""Plays the evaluator without the simulator: its client over the wire, in the sample world or recorded episodes."""
