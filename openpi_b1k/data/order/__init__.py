"""Which sample comes at position n of a run: pure in (seed, n)."""
