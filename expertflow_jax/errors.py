"""The one exception that means "what you gave me is wrong": it names the file, key or flag and the remedy.

Commands print it as one line on standard error and exit with code 2 (see `expertflow_jax.cli`).
"""

import reprlib


class InputError(ValueError):
    """Bad configuration or bad input data. The message is one line: what is wrong, where, and what to do."""


class NumericError(InputError):
    """The model computed NaN or infinite numbers. The message names the first layer where they arise."""


class Unfinished(Exception):
    """A part of a command's work failed; the rest is done and stays. The message is one line: what, and how to retry.
    Commands print it and exit with code 1."""


def brief(value: object, most: int = 120) -> str:
    """A value from a file as messages show it: on one line, and cut where it is long or deep."""
    text = value if isinstance(value, str) and value.isprintable() else _SHORT.repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlong = 60
