"""What grows with the model and the window: host bookkeeping, simulated throughput and token scheduling over sizes."""
