"""From rows to verdicts: verified, refuted, or not decidable here. The criteria are the config's."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import ml_collections

from expertflow_jax.studies.claims.speed import PROTOCOLS, Ratio, speed_up

VERIFIED, REFUTED, UNDECIDED = "verified", "refuted", "not decidable here"
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SpeedUp:
    """Of `expertflow` over a baseline in one cell, by protocol."""

    shape: str
    cache_size: int
    batch_size: int
    baseline: str
    ratios: dict[str, Ratio]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Attributes:
    criterion, evidence: sentences.
    verdict: one of the three words; `under_paper` is the same by the paper's protocol, empty for a mechanism.
    """

    number: int
    claim: str
    criterion: str
    evidence: str
    verdict: str
    under_paper: str = ""


def speed_ups(rows: Iterable[Row], name: str, claim: ml_collections.ConfigDict) -> list[SpeedUp]:
    """Of all cells of one speed claim and all its baselines."""
    seconds = {
        (row["shape"], row["cache_size"], row["batch_size"], row["protocol"], row["policy"]): row["seconds"]
        for row in rows
        if row["kind"] == "speed" and row["claim"] == name
    }
    places = dict.fromkeys(place[:3] for place in seconds)
    return [
        SpeedUp(
            *place,
            baseline,
            {p: speed_up(seconds[*place, p, baseline], seconds[*place, p, "expertflow"]) for p in PROTOCOLS},
        )
        for place in places
        for baseline in claim.baselines
    ]


def judge_speed(claim: ml_collections.ConfigDict, pairs: Sequence[SpeedUp]) -> Verdict:
    """By this project's protocol, and beside it by the paper's."""
    words, spans = {}, {}
    for protocol in PROTOCOLS:
        ratios = [one.ratios[protocol] for one in pairs]
        if all(ratio.low >= claim.least for ratio in ratios):
            words[protocol] = VERIFIED
        else:
            words[protocol] = REFUTED if any(ratio.high < claim.least for ratio in ratios) else UNDECIDED
        reached = sum(ratio.low >= claim.least for ratio in ratios)
        values = [ratio.value for ratio in ratios]
        spans[protocol] = (
            f"{min(values):.2f} to {max(values):.2f}, at least {claim.least:g} in {reached} of {len(ratios)}"
        )
    return Verdict(
        claim.number,
        claim.text,
        f"verified if all 95 % intervals lie at or above {claim.least:g}, refuted if one lies below",
        f"speed-ups {spans['ours']} comparisons; by the paper's protocol {spans['paper']}",
        words["ours"],
        words["paper"],
    )


def judge_mechanism(claim: ml_collections.ConfigDict, measures: dict[str, float]) -> Verdict:
    """Every measure has to reach what the config asks for; those that it does not name are evidence alone."""
    met = all(measures[name] >= least for name, least in claim.least.items())
    others = [name for name in measures if name not in claim.least]
    return Verdict(
        claim.number,
        claim.text,
        "; ".join(f"{name} >= {least:g}" for name, least in claim.least.items()),
        "; ".join(f"{name} {measures[name]:.3f}" for name in [*claim.least, *others]),
        VERIFIED if met else REFUTED,
    )


def judge(config: ml_collections.ConfigDict, rows: Sequence[Row]) -> list[Verdict]:
    """All claims of the config, by number."""
    verdicts = [judge_speed(claim, speed_ups(rows, name, claim)) for name, claim in config.speed.items()]
    measures = {row["claim"]: row["measures"] for row in rows if row["kind"] == "mechanism"}
    verdicts += [judge_mechanism(claim, measures[name]) for name, claim in config.mechanisms.items()]
    return sorted(verdicts, key=lambda verdict: verdict.number)
