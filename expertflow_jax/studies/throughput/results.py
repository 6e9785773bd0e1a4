"""Rows of a throughput run: one per cell and variant, and the JSON object that other programs read (DESIGN section 5).

Rates are in [0, 1], times in seconds, sizes in bytes; a row's times are medians over its repeats.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from expertflow_jax.harness.rows import Measured, measured
from expertflow_jax.offload.budget import MemoryPlan
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.offload.variant import Variant
from expertflow_jax.simulation.limits import Limit
from expertflow_jax.studies.throughput.measure import Repeat
from expertflow_jax.workloads.windows import Window


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(Measured):
    """One variant in one cell; variants of a cell ran in turns, in one process. `cache_fraction` is the config's: 0 is
    one slot. `policy` is without its forecast, `variant` with it."""

    command: ClassVar[str] = "throughput"

    phase: str
    variant: str
    batches_per_block: int
    window: int
    repeats: int
    steps: int
    tokens_per_second_min: float
    tokens_per_second_max: float
    simulated_seconds: float | None
    host_seconds: float
    link_seconds: float
    overlap: float | None
    wasted_prefetches: int
    least_bytes: int
    best_order_bytes: int
    limit_tokens_per_second: float
    fraction_of_limit: float
    best_order_tokens_per_second: float
    forecast_recall: float | None
    memory_saved: float
    new_compilations: int
    gigabytes_per_second: float | None
    latency_us: float

    @property
    def cell(self) -> tuple[str, str, int, float, int, int]:
        """What rows side by side have in common."""
        return *self.place, self.batches_per_block

    @property
    def place(self) -> tuple[str, str, int, float, int]:
        """What rows have in common that differ in variant and order of work alone."""
        return self.model, self.phase, self.batch_size, self.cache_fraction, self.window


def make_row(
    window: Window,
    variant: Variant,
    fraction: float,
    repeats: Sequence[Repeat],
    *,
    plan: MemoryPlan,
    resident_plan: MemoryPlan,
    peak: int,
    limit: Limit,
    best_order: Limit,
    recall: float | None,
    new_compilations: int,
    link: LinkSpec,
    simulated: float | None,
) -> Row:
    """Medians over the repeats.

    Args:
      plan: how the memory is divided; its total is the budget.
      peak: measured in the warm-up run.
      limit, best_order: of the order that was run, and of the whole window as one block.
      simulated: see `simulated.simulated_seconds`.
    """
    seconds = np.array([repeat.seconds for repeat in repeats])
    overlaps = [repeat.overlap for repeat in repeats if repeat.overlap is not None]
    first = repeats[0].stats
    stats: dict[str, Any] = {key: value for key, value in first.items() if isinstance(value, str)}
    stats |= {key: float(np.median([r.stats[key] for r in repeats])) for key in first if key not in stats}
    stats["wall_seconds"] = wall = float(np.median(seconds))
    common = measured(
        stats,
        plan,
        model=window.setup.name,
        variant=variant,
        batch_size=window.batch_size,
        tokens=window.tokens,
        peak_device_bytes=peak,
    )
    return Row(
        **{**common, "policy": variant.name, "cache_fraction": fraction},
        phase=window.phase,
        variant=variant.label,
        batches_per_block=window.batches_per_block,
        window=len(window.batches) * window.batch_size,
        repeats=len(repeats),
        steps=window.num_steps,
        tokens_per_second_min=window.tokens / float(seconds.max()),
        tokens_per_second_max=window.tokens / float(seconds.min()),
        simulated_seconds=simulated,
        host_seconds=stats["host_seconds"],
        link_seconds=stats["link_seconds"],
        overlap=float(np.median(overlaps)) if overlaps else None,
        wasted_prefetches=round(stats["wasted_prefetches"]),
        least_bytes=limit.least_bytes,
        best_order_bytes=best_order.least_bytes,
        limit_tokens_per_second=window.tokens / limit.seconds,
        fraction_of_limit=limit.seconds / wall,
        best_order_tokens_per_second=window.tokens / best_order.seconds,
        forecast_recall=recall,
        memory_saved=1 - plan.total_bytes / resident_plan.total_bytes,
        new_compilations=new_compilations,
        gigabytes_per_second=link.gigabytes_per_second,
        latency_us=link.latency_us,
    )


def cells(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows grouped by cell, in order of first appearance."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.cell, []).append(row)
    return list(groups.values())


def places(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of each place that ran in several orders of work, in order of first appearance."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.place, []).append(row)
    return [group for group in groups.values() if len({row.batches_per_block for row in group}) > 1]


def throughput_json(rows: Sequence[Row], headline: tuple[str, str, int, float], more: dict[str, Any]) -> dict[str, Any]:
    """One JSON object: `policies` of the headline cell (of the last cell, if there is no such), `cells` with those of
    every cell, and whatever else is to go with them.
    """
    groups = cells(rows)
    alone = [group for group in groups if group[0].batches_per_block == 1]
    first = next((group for group in alone if group[0].cell[:4] == headline), groups[-1] if groups else [])
    return {
        **({"cell": _cell(first[0]), "policies": _policies(first)} if first else {"policies": {}}),
        "cells": [_cell(group[0]) | {"policies": _policies(group)} for group in groups],
        **more,
    }


def _cell(row: Row) -> dict[str, Any]:
    names = ("model", "phase", "batch_size", "cache_fraction", "window", "batches_per_block")
    return dict(zip(names, row.cell, strict=True))


def _policies(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        row.variant: {
            "tokens_per_second": {
                "median": row.tokens_per_second,
                "min": row.tokens_per_second_min,
                "max": row.tokens_per_second_max,
            },
            "hit_rate": row.hit_rate,
            "bytes_transferred": row.bytes_transferred,
            "limit_tokens_per_second": row.limit_tokens_per_second,
            "fraction_of_limit": row.fraction_of_limit,
        }
        for row in rows
    }
