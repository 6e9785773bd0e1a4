"""Numbers that a caller gives: refused in one line unless they are what is meant. True and False are no numbers."""

import math
import numbers
import operator
from typing import Any

import numpy as np

from expertflow_jax.errors import InputError


def whole_number(name: str, value: Any, least: int = 0) -> int:
    """The integer `value`, of Python or NumPy.

    Raises:
      InputError: naming `name`, if it is none, or below `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool | np.bool_) or number < least:
        raise InputError(f"{name}: {_short(value)} should be a whole number of at least {least}")
    return number


def real_number(name: str, value: Any, wanted: str) -> float:
    """The finite real number `value`, of Python or NumPy.

    Args:
      wanted: what it should be, for the message.

    Raises:
      InputError: naming `name`.
    """
    try:
        number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer beyond any float
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{name}: {_short(value)} should be {wanted}")
    return number


def _short(value: Any) -> str:
    """On one line of bounded length; an integer of thousands of digits has no decimal form in Python."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
