"""Interactive plots of results, and six of them as pictures."""
