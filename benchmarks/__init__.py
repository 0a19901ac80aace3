"""Benchmarks, with one file per claim. README.md has the table of claims."""
