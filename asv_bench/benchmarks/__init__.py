"""Benchmarks for asv; see docs/performance.md for how to run them."""
