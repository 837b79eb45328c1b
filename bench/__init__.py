"""Benchmarks: `make bench`. Each module has `main(out)`, measures interleaved in one run, and prints medians."""
