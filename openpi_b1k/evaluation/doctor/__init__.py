"""Why does a policy not work: recorded frames replayed, and one assumption changed at a time."""
