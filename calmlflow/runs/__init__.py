"""Entry points of MLproject as MLflow runs, one module each."""
