"""Tables of configs/paper.py: what the paper states and what the simulation gives, cell by cell."""

from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from expertflow_jax.harness.document import Grid
from expertflow_jax.studies.claims.speed import PROTOCOLS, Ratio, speed_up
from expertflow_jax.studies.claims.verdicts import Row
from expertflow_jax.workloads.shapes import find_shape

SUBJECT = "expertflow"
TEXT = (
    "Simulated on {gpu} at its published peaks: {sequences} recorded questions of the trained model with {new_tokens} "
    "tokens of each answer, their routing carried to the published shapes. ours: the predictor forecasts freely and "
    "its time counts, prompts count, a hit is there when its layer asks. paper: the protocol of its released code; the "
    "true path is known at no cost, the clock starts with the first decode step, and what is on its way counts as a "
    "hit. The paper's data (WMT16, XSUM, Alpaca, AIME2024), its predictors and the Switch checkpoints are not here. A "
    "dash: the paper does not state the figure, or it is not at hand."
)
_SPEEDS = (
    "Speed of `expertflow` over the baseline with its 95 % interval over batches. Of a figure that the paper calls the "
    "most (up to), the cell is not known: it stands beside all cells of the model."
)
_HITS = "Hit rates of Switch-32, of one LRU per layer and of `expertflow` (the paper's PLEC)."
_SCHEDULERS = (
    "The token scheduler alone: speed of `expertflow` over that in order of arrival. The paper's three rows stand in "
    "their order; of which set-up they are is not at hand."
)
_MEMORY = (
    "GB of the experts in bfloat16, of all and of the slots alone; the paper's figures hold the rest of the model."
)


def tables(config: ml_collections.ConfigDict, rows: Sequence[Row]) -> list[tuple[str, str, Grid]]:
    """(title, text, grid) of each."""
    return [
        ("Speed", _SPEEDS, speed_grid(config, rows)),
        ("Hit rates (table 1)", _HITS, hit_grid(config, rows)),
        ("Token scheduling (table 2)", _SCHEDULERS, scheduler_grid(config, rows)),
        ("Memory of the experts", _MEMORY, memory_grid(config, rows)),
    ]


def _speeds(rows: Sequence[Row]) -> dict[tuple[Any, ...], Row]:
    """By shape, cache size, batch size, policy and protocol."""
    keys = ("shape", "cache_size", "batch_size", "policy", "protocol")
    return {tuple(row[key] for key in keys): row for row in rows if row["kind"] == "speed"}


def speed_grid(config: ml_collections.ConfigDict, rows: Sequence[Row]) -> Grid:
    """A line for each cell and baseline."""
    by_place, lines = _speeds(rows), []
    for shape, cache_size, batch_size, policy, protocol in by_place:
        if policy == SUBJECT or protocol != PROTOCOLS[0]:
            continue
        place = (shape, cache_size, batch_size)
        ratios = [_ratio(by_place, place, policy, protocol) for protocol in PROTOCOLS]
        if None in ratios:
            continue
        stated = _stated_speed(config, place, policy)
        lines.append((shape, str(cache_size), str(batch_size), f"`{policy}`", *map(str, ratios), stated))
    titles = ("shape", "cache size", "batch", "over", *(f"{protocol}" for protocol in PROTOCOLS), "the paper states")
    return Grid(titles, lines, (False, True, True, False, True, True, True))


def _ratio(by_place: dict[tuple[Any, ...], Row], place: tuple[Any, ...], policy: str, protocol: str) -> Ratio | None:
    pair = [by_place.get((*place, name, protocol)) for name in (policy, SUBJECT)]
    if pair[0] is None or pair[1] is None:
        return None
    return speed_up(pair[0]["seconds"], pair[1]["seconds"])


def _stated_speed(config: ml_collections.ConfigDict, place: tuple[Any, ...], policy: str) -> str:
    shape, cache_size, batch_size = place
    for figure in config.speed_ups:
        if (figure.shape, figure.over) == (shape, policy):
            if (figure.cache_size, figure.batch_size) == (cache_size, batch_size):
                return f"{figure.value:.2f}"
            if not figure.cache_size:
                return f"up to {figure.value:.2f}"
    return "-"


def hit_grid(config: ml_collections.ConfigDict, rows: Sequence[Row]) -> Grid:
    """A line for each figure that the paper states, and for the other cells of its shape."""
    by_place, lines = _speeds(rows), []
    stated = {(f.shape, f.cache_size, f.batch_size, f.policy): f.value for f in config.hit_rates}
    shapes, policies = {shape for shape, *_ in stated}, {policy for *_, policy in stated}
    for place in dict.fromkeys(place[:4] for place in by_place):
        if place[0] in shapes and place[3] in policies:
            shape, cache_size, batch_size, policy = place
            rates = [f"{by_place[(*place, protocol)]['hit_rate']:.3f}" for protocol in PROTOCOLS]
            paper = f"{stated[place]:.3f}" if place in stated else "-"
            lines.append((shape, str(cache_size), str(batch_size), f"`{policy}`", *rates, paper))
    titles = ("shape", "cache size", "batch", "policy", *PROTOCOLS, "the paper states")
    return Grid(titles, lines, (False, True, True, False, True, True, True))


def scheduler_grid(config: ml_collections.ConfigDict, rows: Sequence[Row]) -> Grid:
    """A line for each shape."""
    seconds = {(row["shape"], row["scheduler"]): row["seconds"] for row in rows if row["kind"] == "scheduler"}
    lines = []
    for shape, (without, with_it) in zip(config.scheduler_shapes, config.scheduled, strict=True):
        pair = [seconds.get((shape, scheduler)) for scheduler in ("fifo", config.scheduler)]
        if pair[0] is not None and pair[1] is not None:
            ours = float(np.sum(pair[0]) / np.sum(pair[1]))
            lines.append((shape, f"{ours:.2f}", f"{with_it / without:.2f} ({without:g} to {with_it:g} tokens/s)"))
    where = f"ours, cache size {config.scheduler_cache_size}, batch {config.scheduler_batch_size}"
    return Grid(("shape", where, "table 2"), lines, (False, True, True))


def memory_grid(config: ml_collections.ConfigDict, rows: Sequence[Row]) -> Grid:
    """A line for each shape."""
    shapes = dict.fromkeys(row["shape"] for row in rows)
    sizes = sorted({row["cache_size"] for row in rows})
    lines = []
    for shape in shapes:
        full, layers = find_shape(shape).full, dict(config.layers)[shape]
        layer = layers * full.expert_bytes / 1e9
        slots = [f"{layer * size:.2f}" if size < full.num_experts else "" for size in sizes]
        lines.append((shape, f"{layer * full.num_experts:.2f}", *slots, dict(config.memory).get(shape, "-")))
    titles = ("shape", "all experts", *(f"cache size {size}" for size in sizes), "the paper states, whole model")
    return Grid(titles, lines, (False, *[True] * (len(sizes) + 2)))
