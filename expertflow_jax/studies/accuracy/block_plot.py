"""The plot of blocks: throughput over memory and against the time to the first token, by batches per block (M)."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from expertflow_jax.harness.looks import ordered, policy_look
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.points import legend_below, points_of
from expertflow_jax.studies.accuracy.tables import block_sizes

_LINES = ("-", "--", ":", "-.")


def block_lines(sizes: Sequence[int]) -> dict[int, str]:
    """A line style for each number of batches per block; the least has a solid line."""
    return {size: _LINES[place % len(_LINES)] for place, size in enumerate(sorted(sizes))}


def block_handles(lines: dict[int, str]) -> list[Line2D]:
    """Of a legend; none if there is but one."""
    if len(lines) < 2:
        return []
    return [Line2D([], [], color="#555555", ls=line, label=f"M = {size}") for size, line in lines.items()]


def draw_blocks(rows: Sequence[CellRow]) -> Figure | None:
    """Of one task's lossless cells in order of arrival; None where none runs with several M."""
    plain = [row for row in rows if row.scheduler == "fifo" and row.lossless]
    policies = [
        policy
        for policy in ordered(row.policy for row in plain if row.policy != "resident")
        if len(block_sizes(row for row in plain if row.policy == policy)) > 1
    ]
    if not policies:
        return None
    cells = [row for row in plain if row.policy in policies]
    lines = block_lines(block_sizes(cells))
    figure = Figure(figsize=(11, 4.9), layout="constrained")
    memory, latency = figure.subplots(1, 2, sharey=True)
    for policy in policies:
        for size, line in lines.items():
            points = points_of(r for r in cells if (r.policy, r.batches_per_block) == (policy, size))
            colour, marker = policy_look(policy)
            look = {"color": colour, "marker": marker, "mfc": colour if line == "-" else "white"}
            rates = [point.tokens_per_second for point in points]
            memory.plot([point.mebibytes for point in points], rates, ls=line, **look)
            latency.plot([1000 * point.first_token_seconds for point in points], rates, ls=line, **look)
    for point in points_of(r for r in plain if r.policy == "resident" and r.batches_per_block == 1):
        colour, marker = policy_look("resident")
        memory.axhline(point.tokens_per_second, color=colour, lw=0.8, ls=(0, (1, 2)))
        memory.plot(point.mebibytes, point.tokens_per_second, color=colour, marker=marker, markersize=9, ls="")
        first = 1000 * point.first_token_seconds
        latency.plot(first, point.tokens_per_second, color=colour, marker=marker, markersize=9, ls="")
    memory.set(xlabel="device memory, MiB", ylabel="tokens per second", ylim=(0, None))
    latency.set(xlabel="time to the first token, ms", xlim=(0, None))
    names = [*policies, *(["resident"] if any(row.policy == "resident" for row in plain) else [])]
    handles = [Line2D([], [], color=policy_look(n)[0], marker=policy_look(n)[1], ls="", label=n) for n in names]
    handles += block_handles(lines)
    legend_below(figure, handles)
    return figure
