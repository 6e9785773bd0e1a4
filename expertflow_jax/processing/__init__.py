"""Text and images to model inputs, as Hugging Face's processors make them, without torch."""

from expertflow_jax.processing.content import image_source, split_pictures
from expertflow_jax.processing.processor import Inputs, Processor, check_messages, end_token_ids

__all__ = ["Inputs", "Processor", "check_messages", "end_token_ids", "image_source", "split_pictures"]
