"""From a config's grids to cells: every combination of the values of some keys, checked before any work.

A config's `grids` are groups of cells by name, in the order in which the file names them; a key of a grid is an axis.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from expertflow_jax import names
from expertflow_jax.errors import InputError

Check = Callable[[str, Any], Any]


@dataclasses.dataclass(frozen=True)
class Axis:
    """One key of a grid.

    Attributes:
      key: in the config; it holds a tuple.
      check: (what is named, value) -> the value as cells hold it; raises InputError.
      default: where the key is missing; None: it has to be there.
    """

    key: str
    check: Check
    default: tuple | None = None


def one_of(known: Iterable[Any], hint: str = "") -> Check:
    """Values that are listed; the nearest name is suggested. Args: hint: why no other, as the error's last words."""
    listed = tuple(known)

    def check(where: str, value: Any) -> Any:
        if isinstance(value, str):
            return names.find(f"{where}:", value, map(str, listed))
        if value not in listed:
            raise InputError(
                f"{where}: {value!r} is none of {', '.join(map(str, listed))}" + (f"; {hint}" if hint else "")
            )
        return value

    return check


def made_by(make: Callable[[Any], Any], text: Callable[[Any], str] = str) -> Check:
    """Values from which `make` makes an object or raises InputError; cells hold `text` of what stands in the config."""

    def check(where: str, value: Any) -> str:
        try:
            make(value)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        return text(value)

    return check


def number(low: float, high: float = float("inf"), *, above: bool = False, unit: str = "") -> Check:
    """Numbers from `low` (only above it with `above`) to `high`; whole ones where `low` is an int.

    Args:
      unit: what the number is, as the error's last words.
    """

    def check(where: str, value: Any) -> Any:
        kind = int if isinstance(low, int) else (int, float)
        inside = isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high
        if not inside or (above and value == low):
            bounds = f"{'(' if above else '['}{low:g}, {high:g}]"
            raise InputError(f"{where}: {value!r} is not in {bounds}" + (f"; {unit}" if unit else ""))
        return value if isinstance(low, int) else float(value)

    return check


def values(where: str, grid: Mapping[str, Any], axes: Sequence[Axis]) -> list[tuple]:
    """The checked values of each axis.

    Args:
      where: the grid, as errors name it: "config key grids.lossy".

    Raises:
      InputError: a key that is missing or no tuple, or a value that cannot be.
    """
    listed = []
    for axis in axes:
        given = grid.get(axis.key, axis.default)
        place = f"{where}.{axis.key}" if where[-1] != " " else where + axis.key
        if given is None:
            raise InputError(f"{place} is missing")
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise InputError(f"{place}: {given!r} is no tuple; write ({given!r},)")
        listed.append(tuple(axis.check(place, value) for value in given))
    return listed


def grids(config: ml_collections.ConfigDict, keys: Iterable[str], example: str) -> Iterator[tuple[str, Mapping]]:
    """What errors call a grid, and the grid, for each of `config.grids`.

    Args:
      keys: that a grid may have.
      example: a config file to look at.

    Raises:
      InputError: there is none, or one has an unknown key.
    """
    known = tuple(keys)
    if not config.grids:
        raise InputError(f"config key grids: there is none; add one (see {example})")
    for name, grid in config.grids.items():
        where = f"config key grids.{name}"
        for key in grid:
            names.find(f"{where}: key", key, known)
        yield where, grid
