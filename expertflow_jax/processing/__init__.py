"""Text and images to model inputs, as Hugging Face's processors make them, without torch."""

from expertflow_jax.processing.processor import Inputs, Processor

__all__ = ["Inputs", "Processor"]
