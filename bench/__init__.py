"""Benchmarks: `make bench`. Each module has `main(out)`, measures interleaved in one run, and prints medians."""

import os

# Before NumPy is loaded: a pool of BLAS threads in a process that is pinned to one core afterwards takes turns with
# itself, and an encoding of 0.4 ms takes 30.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
