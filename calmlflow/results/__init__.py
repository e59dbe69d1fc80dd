"""What a training leaves behind: standard result files, scores, plots. Knows neither MLflow nor TensorFlow."""
