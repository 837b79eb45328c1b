"""Measuring a device so that it can be learned: random networks, reference networks, and whole ones to judge by."""
