"""Read and write bytes: files, tables, archives, S3 objects."""
