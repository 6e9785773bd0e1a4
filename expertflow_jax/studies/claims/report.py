"""claims.md: the verdicts, and every speed-up beside the claim under both protocols."""

from collections.abc import Sequence
from statistics import mean

import ml_collections

from expertflow_jax.harness.document import Block, Code, Grid, Heading, Paragraph
from expertflow_jax.studies.claims.speed import PROTOCOLS
from expertflow_jax.studies.claims.verdicts import Row, Verdict, speed_ups


def claims_table(verdicts: Sequence[Verdict]) -> Grid:
    """One line per claim."""
    lines = [
        (str(v.number), v.claim, v.criterion, v.evidence, f"**{v.verdict}**", v.under_paper or "-") for v in verdicts
    ]
    titles = ("", "claim", "criterion", "evidence", "verdict", "by the paper's protocol")
    return Grid(titles, lines, (True, *[False] * 5))


def report(
    config: ml_collections.ConfigDict, rows: Sequence[Row], verdicts: Sequence[Verdict], command: str
) -> list[Block]:
    """All blocks of claims.md."""
    blocks: list[Block] = [
        Heading(1, "Eight claims, judged"),
        Code(command),
        claims_table(verdicts),
        Paragraph(
            f"Speeds are simulated: {config.sequences} recorded questions of the trained model with "
            f"{config.new_tokens} tokens of each answer, their routing carried over to the published shapes, at the "
            f"published peaks of {config.gpu}. **ours**: the predictor forecasts freely and its time counts, prompts "
            "count, a hit is there when its layer asks. **paper**: the true path is known at no cost, the clock starts "
            "with the first decode step, and what is still on its way counts as a hit. The verdict is by ours. Slots "
            "are as many for every policy, but two sections for `se_moe` where that is more. The gate of "
            "`pregated_forecast` is always right here and costs nothing, as one is that decides the routing. "
            "Mechanisms are read from the log of events on the trained model's own routing, with slots for "
            f"{config.cache_fraction:g} of the experts: a verdict on them is on this engine's form of the system, "
            "built by its paper's description."
        ),
    ]
    for name, claim in config.speed.items():
        ratios = speed_ups(rows, name, claim)
        lines = [
            (one.shape, str(one.cache_size), str(one.batch_size), f"`{one.baseline}`", *map(str, one.ratios.values()))
            for one in ratios
        ]
        titles = ("shape", "slots per layer", "batch", "over", *(f"speed-up, {p}" for p in PROTOCOLS))
        blocks += [Heading(2, claim.text), Grid(titles, lines, (False, True, True, False, True, True))]
        blocks.append(_hit_rates(rows, name))
    return blocks


def _hit_rates(rows: Sequence[Row], name: str) -> Grid:
    """Mean over the cells of a claim, by policy, as each protocol counts."""
    rates: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["kind"] == "speed" and row["claim"] == name:
            rates.setdefault(row["policy"], {}).setdefault(row["protocol"], []).append(row["hit_rate"])
    lines = [(f"`{policy}`", *(f"{mean(by[p]):.3f}" for p in PROTOCOLS)) for policy, by in rates.items()]
    return Grid(("policy", *(f"hit rate, {p}" for p in PROTOCOLS)), lines, (False, True, True))
