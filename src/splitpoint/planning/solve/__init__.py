"""The placement problem as numbers, and the ways to solve it, each exact or with a proven gap. No names, no I/O."""
