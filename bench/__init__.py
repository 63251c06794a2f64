"""Benchmarks: the product beside the tools that people would use without it, on the same machine."""
