"""What the engine would gain from being built otherwise, on recorded routing and the virtual clock."""
