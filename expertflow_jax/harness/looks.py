"""How names look and in which order they stand, in every table and plot: a policy has one colour and marker everywhere.

Colours are Okabe and Ito's, which colour-blind readers tell apart. Registries give the order, so a policy or scheduler
that is added there needs nothing here; one from outside the package gets a look that depends on its name alone.
"""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from expertflow_jax.models.expert_dtypes import BITS
from expertflow_jax.offload.misses import MISS_POLICIES
from expertflow_jax.offload.policies import POLICIES
from expertflow_jax.scheduling import SCHEDULERS

Look = tuple[str, str]  # colour, marker

_LOOKS: tuple[Look, ...] = (
    ("#000000", "*"),
    ("#999999", "s"),
    ("#E69F00", "^"),
    ("#CC79A7", "v"),
    ("#D55E00", "P"),
    ("#56B4E9", "X"),
    ("#B5A800", "<"),
    ("#7F3FBF", ">"),
    ("#F0A0A0", "d"),
    ("#5E3C1E", "p"),
    ("#0072B2", "o"),
    ("#009E73", "D"),
    ("#8FD19E", "h"),
    ("#3C6E71", "H"),
    ("#A6C34C", "8"),
)
LINES: dict[str, Any] = {
    "wait": "-",
    "drop": ":",
    "substitute": "--",
    "int8": (0, (7, 1.5)),
    "int4": (0, (3, 1.5, 1, 1.5)),
}


def ordered(names: Iterable[str]) -> list[str]:
    """Distinct names of policies, schedulers and losses: known ones in the order of their registries, each before its
    variants ("expertflow" before "expertflow(truth)"), then the others by alphabet."""
    known = [*POLICIES, *SCHEDULERS, "wait", *BITS, *MISS_POLICIES]

    def place(name: str) -> tuple[int, str]:
        base = _base(name)
        return (known.index(base) if base in known else len(known)), name

    return sorted(set(names), key=place)


def policy_look(name: str) -> Look:
    """Of a policy or a variant of one, which is paler."""
    colour, marker = _look(_base(name), POLICIES)
    return (colour if _base(name) == name else _paler(colour)), marker


def scheduler_look(name: str) -> Look:
    """Of a token scheduler."""
    return _look(_base(name), SCHEDULERS)


def _base(name: str) -> str:
    return name.partition("(")[0]


def _look(name: str, registry: Mapping[str, Any]) -> Look:
    listed = list(registry)
    if name in listed and listed.index(name) < len(_LOOKS):
        return _LOOKS[listed.index(name)]
    free = _LOOKS[len(listed) :] or _LOOKS
    return free[zlib.crc32(name.encode()) % len(free)]


def _paler(colour: str) -> str:
    """Two fifths of the way to white."""
    parts = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#" + "".join(f"{round(part + 0.4 * (255 - part)):02X}" for part in parts)
