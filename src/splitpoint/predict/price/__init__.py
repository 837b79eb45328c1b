"""A model and a `Latency` → what each of its kernels takes, and what measured segments make of that."""
