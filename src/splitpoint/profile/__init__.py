"""What a model costs on one machine with one engine: measured segments, and node costs whose sums predict all others.

`profiles` holds what a profile is (pure, from JSON alone); `measure` makes one.
"""
