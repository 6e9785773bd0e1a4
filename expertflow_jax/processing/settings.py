"""Values of preprocessor_config.json, each checked when it is read: kind, finiteness and range.

A number out of range would show late, as a division by zero, or as a picture of terabytes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from expertflow_jax.errors import InputError

MOST_PIXELS = 1 << 24  # of a resized image: 16,384 tokens of 32 x 32 pixels, the most that published models read


class Settings:
    """One object of a file.

    Attributes:
      values: of all its keys.
    """

    def __init__(self, values: Any, where: str):
        """
        Args:
          where: file, and key if it is not the whole file, for messages.

        Raises:
          InputError: the values are no object.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"{where} is {_short(values)}, a value of the wrong kind; want an object")
        self.values: Mapping[str, Any] = values
        self._where = where

    def section(self, key: str) -> "Settings":
        """The object at a key, empty if there is none."""
        return Settings(self.values.get(key) or {}, f"{self._where}: {key}")

    def has(self, key: str) -> bool:
        """Whether there is a value other than null."""
        return self.values.get(key) is not None

    def whole(self, key: str, default: int | None = None, *, most: int) -> int:
        """A whole number from 1 to `most`; raises InputError if it is none, or missing without a default."""
        value = self._get(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self._wrong(key, value, f"a whole number from 1 to {most:,}")
        return value

    def positive(self, key: str, default: float) -> float:
        """A finite number above 0."""
        value = self._get(key, default)
        if not _is_finite(value) or not 1e-30 < value < 1e30:
            raise self._wrong(key, value, "a finite number above 0")
        return float(value)

    def channels(
        self, key: str, default: Sequence[float] | None = None, *, positive: bool = False
    ) -> tuple[float, ...]:
        """A number for each of red, green and blue, or one for all."""
        value = self._get(key, default)
        numbers = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
        if len(numbers) != 3 or not all(
            _is_finite(number) and abs(number) < 1e30 and (number > 1e-30 or not positive) for number in numbers
        ):
            raise self._wrong(key, value, f"three finite numbers{' above 0' if positive else ''}")
        return tuple(map(float, numbers))

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def must_be_true(self, *keys: str) -> None:
        """Raises InputError if one of these steps is switched off."""
        for key in keys:
            if not self.flag(key, True):
                raise InputError(f"{self._where}: {key} is False; only true is supported")

    def one_of(self, key: str, default: int, allowed: Sequence[int]) -> int:
        """One of some numbers."""
        value = self._get(key, default)
        if isinstance(value, bool) or value not in allowed:
            raise self._wrong(key, value, f"one of {', '.join(map(str, allowed))}")
        return value

    def pairs(self, key: str, default: Sequence[tuple[int, int]], *, most: int) -> tuple[tuple[int, int], ...]:
        """Up to 1,000 pairs of whole numbers of at least 1, of which the products are at most `most`."""
        value = self._get(key, default)
        entries: Sequence[Any] = value if isinstance(value, list | tuple) and 1 <= len(value) <= 1000 else [None]
        for pair in entries:
            if (
                not isinstance(pair, list | tuple)
                or len(pair) != 2
                or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in pair)
                or pair[0] * pair[1] > most
            ):
                raise self._wrong(key, value, f"up to 1,000 pairs [height, width] of at most {most:,} pixels")
        return tuple((high, wide) for high, wide in entries)

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise InputError(f"{self._where}: no key {key!r}; copy the file from the model's hub page")
        return value

    def _wrong(self, key: str, value: Any, wanted: str) -> InputError:
        return InputError(f"{self._where}: {key} is {_short(value)}, a value of the wrong kind; want {wanted}")


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of too many digits to print
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
