"""Tokenizer, chat template and image preprocessing, as the Hugging Face processor does them."""
