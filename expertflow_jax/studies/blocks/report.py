"""The report of a run of blocks: report.md, report.html and plots/*.png, from its rows alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console

from expertflow_jax.harness import report
from expertflow_jax.harness.document import Block, Bullets, Code, Grid, Heading, Paragraph, Picture
from expertflow_jax.studies.blocks.comparison import BASELINE, SUBJECT, TARGETS, Place, places
from expertflow_jax.studies.blocks.grid import Cell
from expertflow_jax.studies.blocks.plots import draw_plots

Row = dict[str, Any]


def write_report(
    workdir: Path,
    rows: Sequence[Row],
    left_out: Sequence[Cell],
    config: ml_collections.ConfigDict,
    command: str,
    console: Console,
) -> None:
    """Writes the report and prints its tables. Args: left_out: cells whose block does not fit into the memory."""
    ordered = sorted(rows, key=lambda row: row["cell"])
    everywhere = places(ordered)
    grids = [
        ("Targets", _TARGETS, target_grid(ordered)),
        ("Speed over batches per block", _SPEED, over_sizes(everywhere, _speed)),
        ("Of resident speed", _RESIDENT, over_sizes(everywhere, lambda row, _: f"{row['fraction_of_resident']:.2f}")),
        ("Of the limit", _LIMIT, over_sizes(everywhere, _limits)),
        (
            "Time to the first token",
            _LATENCY,
            over_sizes(everywhere, lambda row, _: f"{row['first_token_seconds']:.2f}"),
        ),
        ("Slots", _SLOTS, over_sizes(everywhere, lambda row, _: str(row["slots"]))),
    ]
    pictures = draw_plots(everywhere, workdir / "plots")
    blocks: list[Block] = [
        Heading(1, "Blocks of batches: offloading over the order of work"),
        Code(command),
        Paragraph(
            f"Simulated: {config.gpu} at its published peaks and with its link, experts of the full-size models, "
            f"batches of {config.batch_size}. The routing is the trained model's, recorded on questions and carried "
            "over; longer prompts are several recorded ones, one after another. All batches of a window wait at the "
            "beginning. Real GPUs compute more slowly than at their peaks, which hides more of the transfers; "
            "attention over long prompts is counted as linear, which hides less."
        ),
        Bullets(findings(everywhere)),
    ]
    blocks += report.sections(grids, console)
    if left_out:
        names = "; ".join(cell.label() for cell in left_out)
        blocks.append(Paragraph(f"Not run, for the block does not fit into the memory: {names}."))
    blocks += [Heading(2, "Plots"), *(Picture(path, text) for path, text in pictures)]
    blocks += report.attached(workdir, ("config.json", "environment.json"))
    report.write(workdir, blocks)
    console.print(f"wrote {workdir / 'report.md'}, report.html and plots/", highlight=False)


_TARGETS = "Fixed before the run; ratios within it."
_SPEED = (
    f"Tokens per second over those of `{BASELINE}` batch by batch (M = 1) in the same place; in brackets the bytes "
    "that travelled, over its."
)
_RESIDENT = "Tokens per second over those of the compute alone, as if every expert were on the device."
_LIMIT = (
    "Speed over the limit of the order that was run, and over that of the best order: the whole window as one block. "
    "No lossless run passes either."
)
_LATENCY = "Seconds from the beginning of a block until all of its sequences have their first token, mean over blocks."
_SLOTS = "Experts that fit on the device beside dense parameters, the block's KV caches, workspace and predictor."


def over_sizes(everywhere: Sequence[Place], text: Callable[[Row, Place], str]) -> Grid:
    """A line for each place and variant, a column for each M."""
    sizes = sorted({size for place in everywhere for size in place.sizes})
    lines = []
    for place in everywhere:
        for variant in place.variants:
            rows = [place.row(variant, size) for size in sizes]
            lines.append((place.title, f"`{variant}`", *("" if row is None else text(row, place) for row in rows)))
    titles = ("where", "variant", *(f"M = {size}" for size in sizes))
    return Grid(titles, lines, (False, False, *[True] * len(sizes)))


def _speed(row: Row, place: Place) -> str:
    ratio, base = place.speed_up(row["variant"], row["batches_per_block"]), place.row(BASELINE, 1)
    if ratio is None or base is None:
        return f"{row['tokens_per_second']:.0f}/s"
    return f"{ratio:.2f} ({row['bytes_transferred'] / max(base['bytes_transferred'], 1):.2f})"


def _limits(row: Row, _: Place) -> str:
    return f"{row['fraction_of_limit']:.2f}, {row['tokens_per_second'] / row['best_order_tokens_per_second']:.2f}"


def target_grid(rows: Sequence[Row]) -> Grid:
    """Each target with what was measured."""
    lines = [
        (target.what, place, f"{target.at_least:g}", f"{ratio:.2f}", "yes" if ratio >= target.at_least else "no")
        for target in TARGETS
        for place, ratio in target.measured(rows)
    ]
    return Grid(("target", "where", "at least", "measured", "met"), lines, (False, False, True, True, False))


def findings(everywhere: Sequence[Place]) -> list[str]:
    """What blocks buy, what they cost, and whether a forecast still pays, in sentences."""
    points = []
    gains = [(place, gain) for place in everywhere if (gain := place.gain()) is not None]
    if gains:
        place, most = max(gains, key=lambda pair: pair[1])
        least = min(gain for _, gain in gains)
        points.append(
            f"The fastest block is {least:.1f} to {most:.1f} times as fast as the fastest policy without a forecast "
            f"batch by batch; most in {place.title}."
        )
    leads = [_lead(place) for place in everywhere]
    inside = [lead for pairs in leads for size, lead in pairs if size > 1]
    alone = [lead for pairs in leads for size, lead in pairs if size == 1]
    if inside and alone:
        points.append(
            f"`{SUBJECT}` over `{BASELINE}` at the same M: {min(alone):.2f} to {max(alone):.2f} batch by batch, "
            f"{min(inside):.2f} to {max(inside):.2f} in blocks."
        )
    resident = [row for place in everywhere if (row := place.best()) is not None]
    if resident:
        shares = [row["fraction_of_resident"] for row in resident]
        points.append(f"The fastest block runs at {min(shares):.2f} to {max(shares):.2f} of resident speed.")
    waits = [pair for place in everywhere if (pair := _wait(place)) is not None]
    if waits:
        ratios = [after / before for before, after in waits]
        points.append(
            f"It costs time to the first token: `{SUBJECT}` needs {min(ratios):.1f} to {max(ratios):.1f} times as long "
            "in its largest block as for a batch alone, then for all sequences of the block at once."
        )
    return points


def _lead(place: Place) -> list[tuple[int, float]]:
    """(M, the subject's speed over the baseline's) where both ran."""
    pairs = [(size, place.row(SUBJECT, size), place.row(BASELINE, size)) for size in place.sizes]
    return [
        (size, subject["tokens_per_second"] / baseline["tokens_per_second"])
        for size, subject, baseline in pairs
        if subject is not None and baseline is not None
    ]


def _wait(place: Place) -> tuple[float, float] | None:
    """Seconds to the first token at M = 1 and at the largest M."""
    rows = [row for size in place.sizes if (row := place.row(SUBJECT, size)) is not None]
    if len(rows) < 2 or rows[0]["batches_per_block"] != 1:
        return None
    return rows[0]["first_token_seconds"], rows[-1]["first_token_seconds"]
