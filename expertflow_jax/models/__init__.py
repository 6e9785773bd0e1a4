"""Flax NNX modules: one file per model family, shared blocks beside them."""
