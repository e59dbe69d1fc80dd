"""The embedded MLflow and S3 server."""
