"""The operator's command `calmlflow`."""
