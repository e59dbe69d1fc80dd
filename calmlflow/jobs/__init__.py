"""Job records: their schema, where they are read from, and the synthetic sample."""
