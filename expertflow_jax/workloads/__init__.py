"""Recorded routing of the trained model, carried to other shapes, and the windows of batches that replay it."""
