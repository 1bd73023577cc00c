"""Which episodes there are, where their rows and frames lie, and what is said about them."""
