"""Benchmarks: run by hand, never by a timed test. Each appends rows to `benchmarks/results.csv`."""
