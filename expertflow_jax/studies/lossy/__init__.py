"""What lossy miss policies gain on published shapes, in bytes and speed by simulation; accuracy is not simulated."""
