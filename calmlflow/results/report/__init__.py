"""HTML pages of a training and of a comparison."""
