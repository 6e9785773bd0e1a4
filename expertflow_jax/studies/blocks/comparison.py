"""What rows of blocks say when held against each other: speeds within one place, and the targets."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from expertflow_jax.offload.variant import Variant

Row = dict[str, Any]
BASELINE, SUBJECT = "cache_moe", "expertflow"
_PLACE = ("model", "window", "prompt_tokens", "new_tokens", "room")


@dataclasses.dataclass(frozen=True)
class Place:
    """Rows that differ in policy and batches per block alone."""

    rows: Sequence[Row]

    @property
    def title(self) -> str:
        """As tables name it."""
        first = self.rows[0]
        prompts = f"prompts of {first['prompt_tokens']}" if first["prompt_tokens"] else "recorded prompts"
        return f"{first['model']} {first['room']}, {prompts}, {first['new_tokens']} decode steps"

    @property
    def sizes(self) -> list[int]:
        """Values of M, ascending."""
        return sorted({row["batches_per_block"] for row in self.rows})

    @property
    def variants(self) -> list[str]:
        """In the order of the config."""
        return list(dict.fromkeys(row["variant"] for row in self.rows))

    def row(self, variant: str, batches_per_block: int) -> Row | None:
        """The row, if it was run."""
        wanted = {"variant": variant, "batches_per_block": batches_per_block}
        return next((row for row in self.rows if wanted.items() <= row.items()), None)

    def speed_up(self, variant: str, batches_per_block: int) -> float | None:
        """Tokens per second over those of the baseline at M = 1; None if one of both was not run."""
        row, base = self.row(variant, batches_per_block), self.row(BASELINE, 1)
        return None if row is None or base is None else row["tokens_per_second"] / base["tokens_per_second"]

    def best(self, *, forecasts: bool | None = None, batches_per_block: int | None = None) -> Row | None:
        """The fastest row. Args: forecasts: only policies that read one, or that read none; None: any."""
        rows = [
            row
            for row in self.rows
            if forecasts in (None, Variant.of(row["variant"]).forecast != "none")
            and batches_per_block in (None, row["batches_per_block"])
        ]
        return max(rows, key=lambda row: row["tokens_per_second"], default=None)

    def gain(self) -> float | None:
        """The fastest row over the fastest without forecast at M = 1."""
        best, base = self.best(), self.best(forecasts=False, batches_per_block=1)
        return None if best is None or base is None else best["tokens_per_second"] / base["tokens_per_second"]


def places(rows: Sequence[Row]) -> list[Place]:
    """The rows of each place, in order."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in _PLACE), []).append(row)
    return [Place(group) for group in groups.values()]


@dataclasses.dataclass(frozen=True)
class Target:
    """A ratio that blocks are to reach.

    Attributes:
      what: in words.
      at_least: fixed before anything was measured.
      where: the place's model, room, tokens of a prompt and decode steps; None: any.
      ratio: from the place; None where it says nothing.
    """

    what: str
    at_least: float
    where: tuple[str, str, int, int | None]
    ratio: Callable[[Place], float | None]

    def measured(self, rows: Sequence[Row]) -> list[tuple[str, float]]:
        """(place, ratio) of every place that it is about."""
        model, room, prompt, answer = self.where
        pairs = []
        for place in places(rows):
            first = place.rows[0]
            here = (first["model"], first["room"], first["prompt_tokens"]) == (model, room, prompt)
            ratio = self.ratio(place) if here and answer in (None, first["new_tokens"]) else None
            if ratio is not None:
                pairs.append((place.title, ratio))
        return pairs


def _of_eight(place: Place) -> float | None:
    return place.speed_up(SUBJECT, 8)


def _of_resident(place: Place) -> float | None:
    best = place.best()
    return None if best is None else best["fraction_of_resident"]


_EIGHT = f"`{SUBJECT}` in blocks of 8 / `{BASELINE}` batch by batch"
_MEMORY = "the best in blocks / the best without forecast batch by batch, at equal memory"
_QWEN, _MIXTRAL = "qwen3_vl_30b_a3b", "mixtral_8x7b"
TARGETS = (
    Target(_EIGHT, 6.0, (_QWEN, "@0.25", 0, 3), _of_eight),
    Target(_EIGHT, 7.5, (_QWEN, "@0.5", 0, 3), _of_eight),
    Target(_EIGHT, 6.0, (_MIXTRAL, "@0.25", 0, 3), _of_eight),
    Target(_EIGHT, 6.5, (_MIXTRAL, "@0.5", 0, 3), _of_eight),
    *(Target(_MEMORY, 4.0, (_QWEN, budget, 300, None), Place.gain) for budget in ("12GiB", "16GiB", "24GiB")),
    Target("of resident speed", 0.9, (_QWEN, "@0.25", 1000, None), _of_resident),
)
