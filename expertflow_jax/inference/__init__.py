"""Stepping a model whose experts live in an `ExpertCacheEngine`: stages, session, generation."""
