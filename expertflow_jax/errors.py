"""The one exception that means "what you gave me is wrong": it names the file, key or flag and the remedy.

Commands print it as one line on standard error and exit with code 2 (see `expertflow_jax.cli`).
"""


class InputError(ValueError):
    """Bad configuration or bad input data. The message is one line: what is wrong, where, and what to do."""
