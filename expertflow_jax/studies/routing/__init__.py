"""What a model's routing is like: prompts of one kind against others, image against text tokens, reuse of experts."""
