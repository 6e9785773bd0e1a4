"""What blocks of batches gain and cost on full-size models and published GPUs, on the virtual clock."""
