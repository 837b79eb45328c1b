"""A model → the kernels an engine runs: what it fuses, where it lays out anew, each kernel's kind and columns."""
