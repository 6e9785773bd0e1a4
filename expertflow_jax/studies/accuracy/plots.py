"""A study's plots: accuracy, throughput and hit rate over memory, what schedulers save, what lossy misses cost and buy.

A policy has the same colour and marker everywhere. Cells that differ only in their seed are averaged, their intervals
too. Functions draw on figures of their own, without a window system.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from expertflow_jax.files import make_folder
from expertflow_jax.harness.figures import write_figure
from expertflow_jax.harness.looks import LINES, ordered, policy_look, scheduler_look
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.block_plot import block_handles, block_lines, draw_blocks
from expertflow_jax.studies.accuracy.frontier_plot import draw_frontier
from expertflow_jax.studies.accuracy.group_report import draw_groups
from expertflow_jax.studies.accuracy.groups import GroupScores
from expertflow_jax.studies.accuracy.pareto_plot import draw_pareto
from expertflow_jax.studies.accuracy.points import MIB, errors_of, legend_below, mean_of, points_of
from expertflow_jax.studies.accuracy.statistics import noise_floor
from expertflow_jax.studies.accuracy.tables import Comparisons, block_sizes, in_order, of_least_blocks
from expertflow_jax.studies.accuracy.wording import margin

_MOST_PANELS = 4
_RULES: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.markersize": 5.5,
    "legend.frameon": False,
}


def draw_plots(
    rows: Sequence[CellRow], folder: Path, groups: Mapping[str, GroupScores] | None = None
) -> list[tuple[Path, str]]:
    """Draws all plots that the cells allow into `folder`: (path, caption) of each, PNG."""
    import matplotlib

    make_folder(folder)
    pictures = []
    with matplotlib.rc_context(_RULES):
        for task in ordered(row.task for row in rows):
            cells = in_order(row for row in rows if row.task == task)
            drawn = [(name, draw(cells), caption) for name, draw, caption in _PLOTS]
            drawn.append(("groups", draw_groups(cells, groups or {}), _BY_GROUP))
            for name, figure, caption in drawn:
                if figure is None:
                    continue
                path = folder / f"{task}_{name}.png"
                figure.suptitle(f"{task}, {cells[0].model}", fontsize=12)
                write_figure(figure, path)
                pictures.append((path, f"{task}: {caption}{_averaged(cells)}{_simulated(cells)}"))
    return pictures


def _averaged(rows: Sequence[CellRow]) -> str:
    seeds = len({row.seed for row in rows})
    return f" Means over {seeds} seeds, of intervals too." if seeds > 1 else ""


def _simulated(rows: Sequence[CellRow]) -> str:
    return " Tokens per second are of simulated time." if any(row.clock == "virtual" for row in rows) else ""


def _over_memory(rows: Sequence[CellRow]) -> Figure | None:
    """Accuracy, throughput and hit rate over memory, in order of arrival, for the fewest batches per block."""
    rows = of_least_blocks(rows)
    plain = [row for row in rows if row.scheduler == "fifo"]
    policies = ordered(row.policy for row in plain if row.policy != "resident")
    if not policies:
        return None
    looks = {name: policy_look(name) for name in ordered(row.policy for row in rows)}
    figure = Figure(figsize=(13, 4.9), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True)
    lossless = {p: points_of(r for r in plain if r.policy == p and r.lossless) for p in policies}
    sizes = [[point.mebibytes for point in points] for points in lossless.values() if points]
    gaps = np.concatenate([np.zeros(0), *(np.diff(memory) for memory in sizes)])
    step = min(0.012 * np.ptp(np.concatenate(sizes)), 0.22 * gaps.min()) if gaps.size else 0.0
    for i, (policy, points) in enumerate(lossless.items()):
        colour, marker = looks[policy]
        if not points:
            continue
        x = np.array([point.mebibytes for point in points])
        accuracy = np.stack([point.accuracy for point in points]) * 100
        aside = (i - (len(policies) - 1) / 2) * step  # lossless intervals coincide
        axes[0].errorbar(x + aside, accuracy[:, 0], errors_of(accuracy), color=colour, marker=marker, capsize=2, lw=1)
        axes[1].plot(x, [point.tokens_per_second for point in points], color=colour, marker=marker)
        axes[2].plot(x, [100 * point.hit_rate for point in points], color=colour, marker=marker)
    losses = ordered(row.losses for row in plain if not row.lossless and row.policy != "resident")
    for name in losses:
        for policy in policies:
            lossy = points_of(r for r in plain if r.policy == policy and r.losses == name and not r.lossless)
            x = np.array([point.mebibytes for point in lossy])
            look = {"color": looks[policy][0], "marker": looks[policy][1], "markerfacecolor": "white", "lw": 1.2}
            look |= {"ls": LINES.get(name, "-."), "markersize": 4.5}
            axes[0].plot(x, [100 * point.accuracy[0] for point in lossy], **look)
            axes[1].plot(x, [point.tokens_per_second for point in lossy], **look)
    for point in points_of(r for r in plain if r.policy == "resident" and r.lossless):
        colour, marker = looks["resident"]
        for ax, y in zip(axes, (100 * point.accuracy[0], point.tokens_per_second, 100 * point.hit_rate), strict=True):
            ax.axhline(y, color=colour, lw=0.8, ls=(0, (1, 2)))
            ax.plot(point.mebibytes, y, color=colour, marker=marker, markersize=9, ls="")
        axes[0].axhspan(*100 * point.accuracy[1:], color=colour, alpha=0.06, lw=0)
    for ax, label in zip(axes, ("accuracy, % (95% interval)", "tokens per second", "hit rate, %"), strict=True):
        ax.set(xlabel="device memory, MiB", ylabel=label)
        _fraction_axis(ax, plain)
    axes[1].set_ylim(bottom=0)
    axes[2].set_ylim(top=101)
    handles = [_handle(name, *looks[name], "-" if name != "resident" else ":") for name in looks]
    named = dict.fromkeys(("wait", *losses))  # a policy that changes answers may wait for misses, too
    handles += [Line2D([], [], color="#555555", ls=LINES.get(m, "-."), label=f"losses: {m}") for m in named]
    legend_below(figure, handles)
    return figure


def _handle(name: str, colour: str, marker: str, line: str = "-") -> Line2D:
    return Line2D([], [], color=colour, marker=marker, ls=line, label=name)


def _fraction_axis(ax: Axes, rows: Sequence[CellRow]) -> None:
    """Cache fractions along the top; a policy with a predictor has less of it in the same memory."""
    cells = [row for row in rows if row.policy != "resident"]
    fixed = min(row.memory_budget_bytes - row.slots * row.expert_bytes for row in cells) / MIB
    experts = max(row.slots / row.cache_fraction * row.expert_bytes for row in cells) / MIB

    def fraction(mebibytes: Any) -> Any:
        return (np.asarray(mebibytes) - fixed) / experts

    def mebibytes(fraction: Any) -> Any:
        return np.asarray(fraction) * experts + fixed

    top = ax.secondary_xaxis("top", functions=(fraction, mebibytes))
    top.set_xlabel("cache fraction (without predictor)", fontsize=9)
    top.set_xticks(_apart([row.cache_fraction for row in cells] + [row.cache_fraction for row in rows]))
    top.tick_params(labelsize=8)
    top.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")


def _apart(values: Iterable[float]) -> list[float]:
    """The values, from the largest down, less those too near to label beside each other."""
    ticks: list[float] = []
    for value in sorted(set(values), reverse=True):
        if not ticks or ticks[-1] - value > 0.11:
            ticks.append(value)
    return ticks[::-1]


def _by_scheduler(rows: Sequence[CellRow]) -> Figure | None:
    """Distinct experts per batch and throughput over cache fraction by scheduler, for the policy that tried most."""
    waiting = [row for row in rows if row.lossless and row.policy != "resident"]
    tried = {p: len({r.scheduler for r in waiting if r.policy == p}) for p in ordered(r.policy for r in waiting)}
    policy = max(tried, key=lambda p: (tried[p], p == "expertflow"), default=None)
    if policy is None or tried[policy] < 2:
        return None
    cells = [row for row in waiting if row.policy == policy]
    looks = {name: scheduler_look(name) for name in ordered(row.scheduler for row in cells)}
    figure = Figure(figsize=(13, 4.3), layout="constrained")
    axes = figure.subplots(1, 3)
    compare = Comparisons(rows)
    lines = block_lines(block_sizes(cells))
    for (scheduler, (colour, marker)), (size, line) in itertools.product(looks.items(), lines.items()):
        points = points_of(r for r in cells if (r.scheduler, r.batches_per_block) == (scheduler, size))
        x = [point.row.cache_fraction for point in points]
        look = {"color": colour, "marker": marker, "ls": line}
        axes[0].plot(x, [point.experts_per_batch for point in points], **look)
        axes[1].plot(x, [point.tokens_per_second for point in points], **look)
        ratios = [mean_of(compare.speed_up(row, policy=policy) for row in point.rows) for point in points]
        axes[2].plot(x, ratios, **look)
    axes[0].set(ylabel="distinct experts per batch and layer")
    axes[1].set(ylabel=f"tokens per second ({policy})")
    axes[2].set(ylabel="tokens per second, relative to fifo")
    for ax in axes:
        ax.set_xlabel("cache fraction")
    handles = [_handle(name, *look) for name, look in looks.items()]
    legend_below(figure, handles + block_handles(lines))
    return figure


def _trade(rows: Sequence[CellRow]) -> Figure | None:
    """Accuracy difference of lossy cells against their speed relative to waiting."""
    compare = Comparisons(rows)
    drawn = [r for r in rows if not r.lossless and compare.same_size(r, policy=r.policy, scheduler=r.scheduler)]
    if not drawn:
        return None
    losses = ordered(row.losses for row in drawn)
    if len(losses) > _MOST_PANELS:  # the frontier shows them in one picture
        return None
    looks = {name: policy_look(name) for name in ordered(row.policy for row in drawn)}
    figure = Figure(figsize=(4.6 * len(losses) + 1.4, 4.9), layout="constrained")
    axes = figure.subplots(1, len(losses), sharey=True, sharex=True, squeeze=False)[0]
    floor = noise_floor(rows)[rows[0].task]
    several = len(block_sizes(drawn)) > 1
    band, margins = 100 * floor.accuracy, sorted({row.equivalence_margin for row in drawn})
    for ax, name in zip(axes, losses, strict=True):
        ax.axhspan(-band, band, color="#000000", alpha=0.12, lw=0)
        ax.axhline(0, color="black", lw=0.8)
        for side in (-100 * margins[-1], 100 * margins[-1]):
            ax.axhline(side, color="black", lw=0.7, ls="--")
        ax.axvline(1, color="black", lw=0.8, ls=":")
        for policy, (colour, marker) in looks.items():
            for point in points_of(r for r in drawn if r.policy == policy and r.losses == name):
                delta = point.delta[None] * 100
                gain = mean_of(compare.speed_up(r, policy=policy, scheduler=r.scheduler) for r in point.rows)
                face = colour if point.row.scheduler == "fifo" else "white"
                x, y = [gain], delta[:, 0]
                ax.errorbar(x, y, errors_of(delta), color=colour, marker=marker, mfc=face, capsize=2, ls="")
                if several:
                    place = {"xytext": (4, 3), "textcoords": "offset points", "fontsize": 7}
                    ax.annotate(f"M={point.row.batches_per_block}", (gain, delta[0, 0]), **place)
        ax.set(title=f"losses: {name}", xlabel="speed relative to waiting")
    axes[0].set_ylabel("difference in accuracy, points (95%)")
    handles = [_handle(name, *look, "") for name, look in looks.items()]
    handles += [Line2D([], [], color="#555555", marker="o", ls="", label="fifo")]
    handles += [Line2D([], [], color="#555555", marker="o", ls="", mfc="white", label="other scheduler")]
    handles.append(Line2D([], [], color="black", lw=0.7, ls="--", label=f"margin: {margin(margins)}"))
    if floor.cells:
        handles.append(Line2D([], [], color="#000000", alpha=0.2, lw=6, label=f"noise floor: {band:.1f} points"))
    legend_below(figure, handles)
    return figure


_BY_GROUP = "accuracy by group, questions in brackets: the all-resident run and the range of cells that accept losses."
_PLOTS: tuple[tuple[str, Callable[[Sequence[CellRow]], Figure | None], str], ...] = (
    (
        "memory",
        _over_memory,
        "accuracy, throughput and hit rate over device memory, in order of arrival. Lossless points are moved a little "
        "sideways where they coincide; the star and the dotted line are the all-resident run.",
    ),
    (
        "blocks",
        draw_blocks,
        "throughput over device memory, and against the time to the first token, by batches per block (M), in order of "
        "arrival, waiting for misses. The star and the dotted line are the all-resident run, batch by batch.",
    ),
    ("schedulers", _by_scheduler, "distinct experts per batch and throughput by token scheduler, waiting for misses."),
    (
        "lossy",
        _trade,
        "what losses cost in accuracy, and buy in speed over waiting with the same policy, scheduler and size. "
        "Intervals are each cell's own, not adjusted; within the margin a difference counts as no impact.",
    ),
    (
        "pareto",
        draw_pareto,
        "accuracy against tokens per second of all cells but the all-resident ones and those that know the routing. "
        "The line is the front; what another cell of the panel beats in both is faint.",
    ),
    (
        "frontier",
        draw_frontier,
        "accuracy against speed over waiting with the same cache policy and size. The star is waiting; ways that "
        "another one beats in both on this task are faint, naive ones and controls hollow; the band is the margin.",
    ),
)
