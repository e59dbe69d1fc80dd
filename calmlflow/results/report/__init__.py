"""HTML reports of a training and of a comparison."""
