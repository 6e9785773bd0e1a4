"""Tables of a throughput run. A target's row says what was asked, what was measured, and whether it was met."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from expertflow_jax.harness.document import Grid
from expertflow_jax.offload.budget import format_bytes
from expertflow_jax.offload.variant import RESIDENT
from expertflow_jax.studies.throughput.results import Row, cells, places

BASELINES = ("on_demand", "cache_moe")
TARGET_FRACTIONS = (0.25, 0.5)
TARGET_MODELS = ("mixtral_8x7b", "qwen3_vl_30b_a3b")
HOST_US = 50.0

_CELL_TITLES = (
    *("model", "batch", "M", "cache", "variant", "tokens/s", "range", "of limit", "hits", "overlap"),
    *("compute", "stall", "predictor", "host", "moved", "least", "corrections", "peak/budget", "compiled"),
)


def cell_grid(rows: Sequence[Row]) -> Grid:
    """One line per variant and cell."""
    lines = []
    for row in (row for group in cells(rows) for row in group):
        times = (row.compute_seconds, row.stall_seconds, row.predictor_seconds, row.host_seconds)
        lines.append(
            (
                *(row.model, str(row.batch_size), str(row.batches_per_block), f"{row.cache_fraction:g}", row.variant),
                f"{row.tokens_per_second:.0f}",
                f"[{row.tokens_per_second_min:.0f}, {row.tokens_per_second_max:.0f}]",
                f"{row.fraction_of_limit:.2f}",
                "" if row.hit_rate is None else f"{row.hit_rate:.2f}",
                "" if row.overlap is None else f"{row.overlap:.2f}",
                *(f"{1e3 * seconds:.1f}" for seconds in times),
                format_bytes(row.bytes_transferred),
                format_bytes(row.least_bytes),
                str(row.corrections),
                f"{row.peak_device_bytes / row.memory_budget_bytes:.2f}",
                str(row.new_compilations),
            )
        )
    text = {0, 4}
    return Grid(_CELL_TITLES, lines, [column not in text for column in range(len(_CELL_TITLES))])


def block_grid(rows: Sequence[Row]) -> Grid:
    """A line for each place and variant that ran in blocks, a column for each M: speed over that of the baseline batch
    by batch, of the limit, and over the limit of the best order."""
    groups = places(rows)
    sizes = sorted({row.batches_per_block for group in groups for row in group})
    lines = []
    for group in groups:
        base = _base(group)
        for variant in dict.fromkeys(row.variant for row in group):
            by_size = {row.batches_per_block: row for row in group if row.variant == variant}
            texts = [_in_block(by_size[size], base) if size in by_size else "" for size in sizes]
            first = group[0]
            where = (first.model, first.phase, str(first.batch_size), f"{first.cache_fraction:g}", str(first.window))
            lines.append((*where, variant, *texts))
    titles = ("model", "phase", "batch", "cache", "window", "variant", *(f"M = {size}" for size in sizes))
    return Grid(titles, lines, [column not in (0, 1, 5) for column in range(len(titles))])


def _base(group: Sequence[Row]) -> Row | None:
    """`cache_moe` batch by batch."""
    return next((row for row in group if (row.variant, row.batches_per_block) == ("cache_moe", 1)), None)


def _in_block(row: Row, base: Row | None) -> str:
    speed = (
        f"{row.tokens_per_second:.0f}/s" if base is None else f"{row.tokens_per_second / base.tokens_per_second:.2f}"
    )
    return f"{speed} ({row.fraction_of_limit:.2f}, {row.tokens_per_second / row.best_order_tokens_per_second:.2f})"


def memory_grid(rows: Sequence[Row]) -> Grid:
    """The least budget of every model: what it saves and what speed is left."""
    titles = ("model", "phase", "batch", "variant", "budget", "saved", "experts only", "tokens/s", "of resident")
    lines = []
    for group in cells([row for row in rows if row.cache_fraction == 0]):
        everything = {row.variant: row for row in group}.get(RESIDENT.label)
        for row in group:
            if everything is None or row is everything:
                continue
            lines.append(
                (
                    *(row.model, row.phase, str(row.batch_size), row.variant, format_bytes(row.memory_budget_bytes)),
                    f"{100 * row.memory_saved:.1f} %",
                    f"{100 * (1 - row.slots / everything.slots):.2f} %",
                    f"{row.tokens_per_second:.0f}",
                    f"{row.tokens_per_second / everything.tokens_per_second:.2f}",
                )
            )
    return Grid(titles, lines, [column not in (0, 1, 3) for column in range(len(titles))])


def baseline_grid(lines: Sequence[dict[str, Any]]) -> Grid:
    """Everything resident: the engine against its contenders."""
    titles = ("model", "phase", "batch", "contender", "engine tokens/s", "contender tokens/s", "ratio")
    texts = []
    for line in (line for line in lines if line["kind"] == "baseline"):
        speeds = [line["tokens"] / float(np.median(line[f"{who}_seconds"])) for who in ("engine", "contender")]
        place = (line["model"], line["phase"], str(line["batch_size"]), line["contender"])
        texts.append((*place, *(f"{speed:.0f}" for speed in speeds), f"{line['ratio']:.2f}"))
    return Grid(titles, texts, [column not in (0, 1, 3) for column in range(len(titles))])


def rival_grid(lines: Sequence[dict[str, Any]]) -> Grid:
    """Other engines that offload, and why one did not run."""
    titles = ("engine", "model", "batch", "device GB", "tokens/s", "what ran")
    texts = [
        (
            *(line["rival"], line["model"], str(line["batch_size"]), f"{line['device_bytes'] / 1e9:.0f}"),
            *("" if line["tokens_per_second"] is None else f"{line['tokens_per_second']:.1f}", line["note"]),
        )
        for line in lines
        if line["kind"] == "rival"
    ]
    return Grid(titles, texts, [False, False, True, True, True, False])


def host_grid(lines: Sequence[dict[str, Any]]) -> Grid:
    """Host bookkeeping over the number of layers."""
    texts = [
        (
            *(line["policy"], str(line["num_layers"]), str(line["num_experts"])),
            *(f"{line['host_us']:.1f}", f"{line['host_us_median']:.1f}"),
        )
        for line in lines
        if line["kind"] == "host"
    ]
    return Grid(("policy", "layers", "experts", "µs per layer-step", "median"), texts, [False, True, True, True, True])


def target_grid(rows: Sequence[Row], lines: Sequence[dict[str, Any]]) -> Grid:
    """Targets that this run speaks of: the worst cell counts."""
    targets: list[tuple[str, list[tuple[float, str]], float]] = []
    groups = [
        {row.variant: row for row in group}
        for group in cells([row for row in rows if row.batches_per_block == 1])
        if group[0].model in TARGET_MODELS and group[0].cache_fraction in TARGET_FRACTIONS
    ]

    def each(variant: str, value: Callable[[dict[str, Row]], float | None]) -> list[tuple[float, str]]:
        valued = [(value(group), group[variant]) for group in groups if variant in group]
        return [(number, _place(row)) for number, row in valued if number is not None]

    def of_limit(variant: str) -> Callable[[dict[str, Row]], float | None]:
        return lambda group: group[variant].fraction_of_limit

    def against(names: Sequence[str], most: float) -> Callable[[dict[str, Row]], float | None]:
        """Speed over the best of `names`, where the limit is `most` times that at least."""

        def ratio(group: dict[str, Row]) -> float | None:
            best = max((group[name].tokens_per_second for name in names if name in group), default=None)
            ours = group["expertflow"]
            if best is None or ours.limit_tokens_per_second < most * best:
                return None
            return ours.tokens_per_second / best

        return ratio

    targets += [
        ("expertflow, true path: of the limit", each("expertflow(truth)", of_limit("expertflow(truth)")), 0.9),
        ("expertflow, trained predictor: of the limit", each("expertflow", of_limit("expertflow")), 0.75),
        ("expertflow / cache_moe, where the limit allows", each("expertflow", against(("cache_moe",), 2)), 2),
        ("expertflow / best baseline, where it allows", each("expertflow", against(BASELINES, 1.85)), 1.85),
        ("expertflow / best baseline, every cell", each("expertflow", against(BASELINES, 0)), 1.0),
    ]
    targets += _block_targets(rows)
    targets += _baseline_targets(lines)
    peaks = [(row.memory_budget_bytes / max(row.peak_device_bytes, 1), _place(row)) for row in rows]
    targets.append(("budget / measured peak, every cell", peaks, 1.0))
    compiled = [(float(-row.new_compilations), _place(row)) for row in rows]
    targets.append(("compilations after warm-up (negative)", compiled, 0.0))
    host = [(HOST_US / line["host_us"], line["section"]) for line in lines if _is_host_target(line)]
    targets.append((f"{HOST_US:g} µs / host bookkeeping at 48 layers", host, 1.0))
    texts = []
    for name, values, least in targets:
        if not values:
            continue
        worst, place = min(values)
        met = sum(value >= least for value, _ in values)
        median = float(np.median([value for value, _ in values]))
        texts.append((name, f"{least:g}", f"{worst:.2f}", f"{median:.2f}", f"{met} of {len(values)}", place))
    return Grid(("target", "at least", "worst", "median", "met in", "worst at"), texts, [False, *[True] * 4, False])


def _block_targets(rows: Sequence[Row]) -> list[tuple[str, list[tuple[float, str]], float]]:
    """Of the cells that ran in blocks, the largest of each place."""
    ratios, limits = [], []
    for group in places(rows):
        base, most = _base(group), max(row.batches_per_block for row in group)
        for row in group:
            if row.variant != "expertflow" or row.batches_per_block == 1:
                continue
            limits.append((row.fraction_of_limit, _place(row)))
            if base is not None and row.batches_per_block == most:
                ratios.append((row.tokens_per_second / base.tokens_per_second, _place(row)))
    return [
        ("expertflow in the largest block / cache_moe batch by batch", ratios, 4.0),
        ("expertflow in blocks: of the limit of its order", limits, 0.85),
    ]


def _is_host_target(line: dict[str, Any]) -> bool:
    return line["kind"] == "host" and line["num_layers"] == 48


def _baseline_targets(lines: Sequence[dict[str, Any]]) -> list[tuple[str, list[tuple[float, str]], float]]:
    """The fused jit counts by its faster kernel, and from batch 8."""
    fused: dict[str, float] = {}
    reference: list[tuple[float, str]] = []
    for line in (line for line in lines if line["kind"] == "baseline"):
        place = f"{line['model']} {line['phase']} batch {line['batch_size']}"
        if not line["contender"].startswith("fused"):
            reference.append((line["ratio"], place))
        elif line["batch_size"] >= 8:
            fused[place] = min(line["ratio"], fused.get(place, np.inf))
    return [
        ("resident through the engine / fused jit, batch 8 and above", [(v, k) for k, v in fused.items()], 0.95),
        ("resident / Hugging Face transformers", reference, 1.0),
    ]


def _place(row: Row) -> str:
    blocks = f" M = {row.batches_per_block}" if row.batches_per_block > 1 else ""
    return f"{row.model} {row.phase} batch {row.batch_size} @{row.cache_fraction:g} {row.variant}{blocks}"
