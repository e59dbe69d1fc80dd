"""The MLflow server: its processes, database and users, and the embedded S3 store."""
