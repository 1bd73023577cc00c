"""Training: state, update, loop, and the directory a run lives in."""
