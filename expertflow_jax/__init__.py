"""Predictive expert caching and token scheduling for Mixture-of-Experts models in JAX/Flax."""
