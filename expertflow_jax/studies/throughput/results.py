"""Rows of a throughput run: one per cell and variant, and the JSON object that other programs read (DESIGN section 5).

Rates are in [0, 1], times in seconds, sizes in bytes; a row's times are medians over its repeats.
"""

import csv
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from expertflow_jax.offload.budget import MemoryPlan
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.studies.throughput.measure import Repeat, Variant
from expertflow_jax.workloads.windows import Window


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One variant in one cell; variants of a cell ran in turns, in one process.

    Attributes (beyond those whose name says it):
      variant: see `measure.Variant.label`; policy and forecast apart as well.
      cache_fraction: slots / experts.
      tokens_per_second, _min, _max: median and range over the repeats.
      host_seconds: inside the engine, waiting left out.
      compute_seconds: the rest of the time: stages on the device and what dispatches them.
      link_seconds: the link was occupied.
      overlap: share of the time under way in which compute did not wait; None if nothing moved.
      least_bytes: what an offline-optimal cache moves.
      limit_tokens_per_second: tokens / max(resident seconds, least_bytes / bandwidth).
      forecast_recall: of the experts that layer-steps used, the share among equally many of the highest forecast.
      memory_saved: 1 - memory budget / that of the all-resident run.
      new_compilations: executables made after the warm-up.
    """

    model: str
    phase: str
    batch_size: int
    cache_fraction: float
    slots: int
    variant: str
    policy: str
    forecast: str
    repeats: int
    steps: int
    tokens: int
    tokens_per_second: float
    tokens_per_second_min: float
    tokens_per_second_max: float
    wall_seconds: float
    compute_seconds: float
    stall_seconds: float
    predictor_seconds: float
    host_seconds: float
    link_seconds: float
    overlap: float | None
    hit_rate: float
    hits: int
    late: int
    misses: int
    corrections: int
    prefetches: int
    wasted_prefetches: int
    bytes_transferred: int
    least_bytes: int
    limit_tokens_per_second: float
    fraction_of_limit: float
    forecast_recall: float | None
    expert_bytes: int
    memory_budget_bytes: int
    peak_device_bytes: int
    memory_saved: float
    new_compilations: int
    link: str
    gigabytes_per_second: float | None
    latency_us: float

    @property
    def cell(self) -> tuple[str, str, int, float]:
        """What rows side by side have in common."""
        return self.model, self.phase, self.batch_size, self.cache_fraction


def make_row(
    window: Window,
    variant: Variant,
    fraction: float,
    repeats: Sequence[Repeat],
    *,
    plan: MemoryPlan,
    resident_plan: MemoryPlan,
    peak: int,
    least_bytes: int,
    limit: float,
    recall: float | None,
    new_compilations: int,
    link: LinkSpec,
) -> Row:
    """Medians over the repeats.

    Args:
      plan: how the memory is divided; its total is the budget.
      peak: measured in the warm-up run.
      limit: least seconds of the window.
    """

    def median(key: str) -> float:
        return float(np.median([repeat.stats[key] for repeat in repeats]))

    seconds = np.array([repeat.seconds for repeat in repeats])
    wall = float(np.median(seconds))
    overlaps = [repeat.overlap for repeat in repeats if repeat.overlap is not None]
    stall, forecasting, host = (median(f"{kind}_seconds") for kind in ("stall", "predictor", "host"))
    return Row(
        model=window.setup.name,
        phase=window.phase,
        batch_size=window.batch_size,
        cache_fraction=fraction,
        slots=plan.slots,
        variant=variant.label,
        policy=variant.policy,
        forecast=variant.forecast,
        repeats=len(repeats),
        steps=window.num_steps,
        tokens=window.tokens,
        tokens_per_second=window.tokens / wall,
        tokens_per_second_min=window.tokens / float(seconds.max()),
        tokens_per_second_max=window.tokens / float(seconds.min()),
        wall_seconds=wall,
        compute_seconds=max(0.0, wall - stall - forecasting - host),
        stall_seconds=stall,
        predictor_seconds=forecasting,
        host_seconds=host,
        link_seconds=median("link_seconds"),
        overlap=float(np.median(overlaps)) if overlaps else None,
        hit_rate=median("hit_rate"),
        **{
            key: round(median(key))
            for key in ("hits", "late", "misses", "corrections", "prefetches", "wasted_prefetches", "bytes_transferred")
        },
        least_bytes=least_bytes,
        limit_tokens_per_second=window.tokens / limit,
        fraction_of_limit=limit / wall,
        forecast_recall=recall,
        expert_bytes=window.setup.store.expert_bytes,
        memory_budget_bytes=plan.total_bytes,
        peak_device_bytes=peak,
        memory_saved=1 - plan.total_bytes / resident_plan.total_bytes,
        new_compilations=new_compilations,
        link=str(link),
        gigabytes_per_second=link.gigabytes_per_second,
        latency_us=link.latency_us,
    )


def forecast_recall(needed: np.ndarray, forecasts: Sequence[np.ndarray]) -> float:
    """Recall of forecasts at as many experts as each layer-step used.

    Args:
      needed: bool [N, L, E].
      forecasts: N of float32 [L, E], of the step at hand.
    """
    found = used = 0
    for step, chances in zip(needed, forecasts, strict=True):
        for layer, forecast in zip(step, chances, strict=True):
            count = int(layer.sum())
            found += int(layer[np.argsort(-forecast, kind="stable")[:count]].sum())
            used += count
    return found / used if used else 1.0


def parse_row(value: Any) -> Row:
    """The row of a line's JSON value; raises TypeError if this version knows no such row."""
    if not isinstance(value, dict):
        raise TypeError("not a JSON object")
    return Row(**value)


def to_csv(rows: Sequence[Row]) -> str:
    """All rows with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(Row)]
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    return text.getvalue()


def cells(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows grouped by cell, in order of first appearance."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(row.cell, []).append(row)
    return list(found.values())


def throughput_json(rows: Sequence[Row], headline: tuple[str, str, int, float], more: dict[str, Any]) -> dict[str, Any]:
    """One JSON object: `policies` of the headline cell (of the last cell, if there is no such), `cells` with those of
    every cell, and whatever else is to go with them.
    """
    groups = cells(rows)
    first = next((group for group in groups if group[0].cell == headline), groups[-1] if groups else [])
    return {
        **({"cell": _cell(first[0]), "policies": _policies(first)} if first else {"policies": {}}),
        "cells": [_cell(group[0]) | {"policies": _policies(group)} for group in groups],
        **more,
    }


def _cell(row: Row) -> dict[str, Any]:
    return dict(zip(("model", "phase", "batch_size", "cache_fraction"), row.cell, strict=True))


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
