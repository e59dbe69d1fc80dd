"""The three networks: scaling, architectures, training and export. Knows no MLflow."""
