"""What is learned of one device (`latency_model.Latency`), how it is trained, and its files."""
