"""In which numbers experts can be kept beside the model's own dtype; without jax, so that rows load at once."""

BITS = {"int8": 8, "int4": 4}
