"""Statistics of columns: mergeable distributions, what is counted of an episode, and where results are kept."""
