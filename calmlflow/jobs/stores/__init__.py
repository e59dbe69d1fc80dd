"""Stores of job records, opened by one URI."""
