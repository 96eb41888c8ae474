"""Benchmarks for asv; see docs/performance/index.md for how to run them."""
