"""What a study's numbers say, in words, each computed from the rows; and what they do not support. (DESIGN section 10.)

What may be claimed is decided in `claims`, speeds are worked out in `performance`.
"""

import dataclasses
from collections.abc import Callable, Sequence

from expertflow_jax.harness.document import Block, Bullets, Grid, Heading, Paragraph
from expertflow_jax.harness.looks import ordered
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.blocks import block_findings, blocks_answer
from expertflow_jax.studies.accuracy.claims import (
    ALPHA,
    Resolution,
    Verdict,
    changes_accuracy,
    resolutions,
    verdicts,
)
from expertflow_jax.studies.accuracy.frontier import frontier
from expertflow_jax.studies.accuracy.pareto import pareto
from expertflow_jax.studies.accuracy.performance import (
    SUBJECT,
    hit_rates,
    schedulers,
    speed,
    speed_ups,
    subject_blocks,
    verdict,
)
from expertflow_jax.studies.accuracy.statistics import NoiseFloor, noise_floor
from expertflow_jax.studies.accuracy.tables import MISSING, block_sizes, percent, points
from expertflow_jax.studies.accuracy.wording import LISTED, clock_note, count, in_blocks, margin, name, names, span

__all__ = ["answer", "changes_accuracy", "findings"]


def findings(rows: Sequence[CellRow]) -> list[Block]:
    """The report's findings; a part whose cells the study lacks is left out."""
    parts: list[tuple[str, Callable[[Sequence[CellRow]], list[Block]]]] = [
        ("Do answers stay the same?", _lossless),
        ("Is it faster?", speed),
        ("Does it keep the right experts?", hit_rates),
        ("What do blocks of batches buy, and cost?", block_findings),
        ("Does regrouping sequences help?", schedulers),
        ("What do losses cost, and buy?", _lossy),
        ("What speed can be had within the margin?", frontier),
        ("Which cells are not beaten in accuracy and speed?", pareto),
        ("What these numbers do not support", _limits),
    ]
    blocks: list[Block] = []
    for title, part in parts:
        if contents := part(rows):
            blocks += [Heading(3, title), *contents]
    return blocks


def answer(rows: Sequence[CellRow]) -> Paragraph:
    """The study's answer in one paragraph: what waiting, losses and the subject's forecasts did."""
    waiting, lossy = LosslessCells.of(rows), LossyCells.of(rows)
    sentences = []
    if waiting.cells:
        sentences.append(
            f"Keeping only a part of the experts on the device, and waiting for the others, changed no logit in "
            f"**{waiting.identical} of {count(len(waiting.cells), 'cell')}**, against the all-resident run of the same "
            "batches."
        )
        sentences += _accuracies(rows)
    if lossy.verdicts:
        sentences.append(f"Of {count(len(lossy.verdicts), 'cell')} that accept losses, {_lossy_clauses(lossy)}.")
    sizes = subject_blocks(rows)
    if fair := [other for size in sizes[:1] for other in speed_ups(rows, size) if not other.aim]:
        rates = [f"**{span(o.all_ratios)}** that of `{o.policy}` ({verdict(o.all_ratios)})" for o in fair]
        sentences.append(
            f"At equal cache size and without losses, the speed of `{SUBJECT}`{in_blocks(sizes[0])} is "
            f"{', '.join(rates)}{clock_note(rows)}."
        )
    if more := blocks_answer(rows):
        sentences.append(more)
    if not sentences:
        sentences.append("Every cell has all experts on the device and is lossless, so there is nothing to compare.")
    return Paragraph(" ".join(sentences))


def _accuracies(rows: Sequence[CellRow]) -> list[str]:
    """For each task the all-resident accuracy, and the verdict on cells that wait, over which sizes."""
    sentences = []
    for task in ordered(row.task for row in rows):
        cells = [row for row in rows if row.task == task and row.lossless and row.policy != "resident"]
        whole = [row for row in rows if row.task == task and row.policy == "resident" and row.lossless]
        if not whole:
            continue
        first = min(whole, key=lambda row: (row.seed, row.scheduler != "fifo", row.batches_per_block))
        sentence = (
            f"On {task} the all-resident run is right in {percent(first.accuracy)}% "
            f"[{percent(first.accuracy_ci_low)}, {percent(first.accuracy_ci_high)}]"
        )
        proved = sum(row.equivalence_p == 0 for row in cells)
        shown = sum(0 < row.equivalence_p < ALPHA for row in cells)
        if cells:
            sentence += (
                f"; that waiting for experts has no impact is proved, bit for bit, in {proved} of "
                f"{count(len(cells), 'cell')} (cache fractions "
                f"{span((row.cache_fraction for row in cells), '{:.3g}')})"
            )
            if shown:
                sentence += f", and shown by test within {margin([first.equivalence_margin])} in {shown}"
            if moved := [row.accuracy_delta for row in cells if row.accuracy_delta]:
                sentence += f", with differences of {span((100 * d for d in moved), '{:+.1f}')} points in the others"
        sentences.append(sentence + ".")
    return sentences


def _lossy_clauses(lossy: "LossyCells") -> str:
    if len(lossy.undecided) == len(lossy.verdicts):
        return (
            "for **none** a change in accuracy is shown, nor the absence of one: that there is no impact is not "
            "refuted, and not shown"
        )
    clauses = []
    if lossy.losers:
        clauses.append(f"**{len(lossy.losers)}** lose accuracy, by {_sizes(lossy.losers)} points")
    if lossy.gainers:
        clauses.append(f"**{len(lossy.gainers)}** gain accuracy, by {_sizes(lossy.gainers)} points")
    if not clauses:
        clauses.append("for **none** a change in accuracy is shown")
    if lossy.equivalent:
        clauses.append(
            f"for **{len(lossy.equivalent)}** a change of {lossy.margin} or more is ruled out{_proofs(lossy)}"
        )
    else:
        clauses.append("for none is its absence shown")
    if lossy.undecided:
        number = "one" if len(lossy.undecided) == 1 else str(len(lossy.undecided))
        clauses.append(f"for **{number}** neither is shown: that there is no impact is not refuted, and not shown")
    return "; ".join(clauses)


@dataclasses.dataclass(frozen=True)
class LosslessCells:
    """Cells that wait for missing experts, other than the all-resident ones.

    Attributes:
      flips: changed answers of each that runs in order of arrival; `regrouped_flips` of each that does not.
    """

    cells: list[CellRow]
    different: list[CellRow]
    flips: list[int]
    regrouped_flips: list[int]

    @property
    def identical(self) -> int:
        """How many have the logits of the all-resident run of the same batches, bit for bit."""
        return len(self.cells) - len(self.different)

    @staticmethod
    def of(rows: Sequence[CellRow]) -> "LosslessCells":
        """Those among `rows`."""
        cells = [row for row in rows if row.lossless and row.policy != "resident"]
        return LosslessCells(
            cells,
            [row for row in cells if not row.bit_identical],
            [row.flips for row in cells if row.scheduler == "fifo"],
            [row.flips for row in cells if row.scheduler != "fifo"],
        )


def _lossless(rows: Sequence[CellRow]) -> list[Block]:
    waiting = LosslessCells.of(rows)
    sentences = []
    if waiting.cells:
        end = "the same logits, bit for bit, as the all-resident run of the same batches"
        sentences.append(
            f"**{waiting.identical} of {count(len(waiting.cells), 'cell')}** that wait for missing experts computed "
            f"{end}." + (f" Not identical: {names(waiting.different)}." if waiting.different else "")
        )
        examples = span((row.num_examples for row in waiting.cells), "{}")
        for where, flips in (("order of arrival", waiting.flips), ("regrouped batches", waiting.regrouped_flips)):
            if flips:
                sentences.append(
                    f"In {where} they changed {sum(flips)} answers in all ({span(flips, '{}')} per cell of "
                    f"{examples} examples)."
                )
    sentences += [_noise(task, floor, rows) for task, floor in noise_floor(rows).items()]
    return [Bullets(sentences)]


def _noise(task: str, floor: NoiseFloor, rows: Sequence[CellRow]) -> str:
    if not floor.cells:
        return f"Noise floor of {task}: unknown, for no all-resident cell ran with the `random` scheduler."
    examples = next(row.num_examples for row in rows if row.task == task)
    cells = count(floor.cells, "cell")
    start = f"Noise floor of {task}: regrouping the batches at random, with every expert on the device ({cells}),"
    if not (floor.flips or floor.accuracy or floor.logit_kl):
        return f"{start} changed none of {examples} answers and no probability of a first token."
    return (
        f"{start} changed at most {floor.flips} of {examples} answers, accuracy by at most "
        f"{100 * floor.accuracy:.1f} points and the first answer token by a mean KL of {floor.logit_kl:.1e} nats. "
        "No smaller effect is claimed."
    )


@dataclasses.dataclass(frozen=True)
class LossyCells:
    """Verdicts on lossy cells, sorted by what is claimed of them; a cell may differ by less than the margin."""

    verdicts: list[Verdict]
    losers: list[Verdict]
    gainers: list[Verdict]
    equivalent: list[Verdict]
    undecided: list[Verdict]

    @staticmethod
    def of(rows: Sequence[CellRow]) -> "LossyCells":
        """Those of the lossy cells among `rows`; losers and gainers with the largest change first."""
        return LossyCells.sorted(verdicts(rows))

    @property
    def margin(self) -> str:
        """Of equivalence, in words."""
        return margin(v.row.equivalence_margin for v in self.verdicts)

    @staticmethod
    def sorted(group: list[Verdict]) -> "LossyCells":
        """The same of some of the verdicts."""
        differing = [v for v in group if v.differs]
        return LossyCells(
            group,
            sorted((v for v in differing if v.row.accuracy_delta < 0), key=lambda v: v.row.accuracy_delta),
            sorted((v for v in differing if v.row.accuracy_delta > 0), key=lambda v: -v.row.accuracy_delta),
            [v for v in group if v.equivalent],
            [v for v in group if v.open],
        )


def _lossy(rows: Sequence[CellRow]) -> list[Block]:
    lossy = LossyCells.of(rows)
    if not lossy.verdicts:
        return []
    sentences = [*_claims(lossy)]
    for losses in ordered(v.row.losses for v in lossy.verdicts):
        sentences.append(_one_kind(losses, LossyCells.sorted([v for v in lossy.verdicts if v.row.losses == losses])))
    blocks: list[Block] = [Bullets(sentences + _open_cells(lossy))]
    return blocks + _table(lossy.losers + lossy.gainers)


def _claims(lossy: LossyCells) -> list[str]:
    differing, number = len(lossy.losers) + len(lossy.gainers), len(lossy.verdicts)
    return [
        f"**{differing} of {number}** lossy cells differ in accuracy from the all-resident run: {len(lossy.losers)} "
        f"lose, {len(lossy.gainers)} gain (signs of whole clusters flipped, Holm-adjusted p below {ALPHA} over "
        f"{count(number, 'cell')}, interval without 0 on the same side, beyond the noise floor).",
        f"In **{len(lossy.equivalent)} of {number}** a difference of {lossy.margin} or more is ruled out"
        f"{_proofs(lossy)}: only there is no impact a finding (two one-sided tests: the 90% interval lies within the "
        f"margin; Holm-adjusted p below {ALPHA}).",
    ]


def _one_kind(losses: str, lossy: LossyCells) -> str:
    differing = lossy.losers + lossy.gainers
    gains = [v.speed_up for v in lossy.verdicts if v.speed_up is not None]
    changes = f" by {_sizes(differing)} points" if differing else ""
    bought = f"; {span(gains)} the tokens per second of waiting" if gains else ""
    ratios = [v.fewer_bytes for v in lossy.verdicts if v.fewer_bytes is not None]
    if ratios and all(v.row.quantized for v in lossy.verdicts):
        bought += f", {span(ratios, '{:.1f}')} times fewer bytes moved"
    return (
        f"`{losses}`: accuracy differs in {len(differing)} of {count(len(lossy.verdicts), 'cell')}{changes}, no impact "
        f"is shown in {len(lossy.equivalent)}; {span((v.row.flips for v in lossy.verdicts), '{}')} changed "
        f"answers{bought}."
    )


def _open_cells(lossy: LossyCells) -> list[str]:
    if not lossy.undecided:
        return []
    rows = [v.row for v in lossy.undecided]
    sentences = [
        f"In the other {count(len(rows), 'cell')} no difference is shown, which is not the same as none: that there is "
        f"no impact is not refuted, and not shown. Their 95% intervals reach from "
        f"{points(min(r.delta_ci_low for r in rows))} to {points(max(r.delta_ci_high for r in rows))} points."
    ]
    best = max(lossy.undecided, key=lambda v: v.speed_up or 0.0)
    if best.speed_up is not None:
        sentences.append(
            f"The most that such a cell gains over waiting is {best.speed_up:.2f}x ({name(best.row)}): "
            f"{_difference(best.row)} points, {best.row.flips} changed answers."
        )
    return sentences


def _table(differing: Sequence[Verdict]) -> list[Block]:
    if not differing:
        return []
    listed = differing[:LISTED]
    several = len(block_sizes(v.row for v in listed)) > 1
    titles = ["task", "policy", "scheduler", "losses", *(["M"] if several else [])]
    titles += ["cache fraction", "difference, points [95%]", "adjusted p", "speed"]
    lines = [
        [
            *(v.row.task, v.row.policy, v.row.scheduler, v.row.losses),
            *([str(v.row.batches_per_block)] if several else []),
            f"{v.row.cache_fraction:.3g}",
            *(_difference(v.row), f"{v.p:.1e}", MISSING if v.speed_up is None else f"{v.speed_up:.2f}x"),
        ]
        for v in listed
    ]
    which = f"The first {LISTED} of them" if len(differing) > LISTED else "Those that differ"
    return [
        Paragraph(
            f"{which}, the largest losses first; speed is relative to waiting with the same policy, scheduler and "
            "size. The p-values are adjusted for the number of lossy cells, the intervals are not:"
        ),
        Grid(titles, lines, [False] * 4 + [True] * (len(titles) - 4)),
    ]


def _sizes(group: Sequence[Verdict]) -> str:
    return span((100 * v.row.accuracy_delta for v in group), "{:+.1f}")


def _proofs(lossy: LossyCells) -> str:
    proofs = sum(v.proved for v in lossy.equivalent)
    return f" ({proofs} by proof: every logit is the same, bit for bit)" if proofs else ""


def _difference(row: CellRow) -> str:
    return f"{points(row.accuracy_delta)} [{points(row.delta_ci_low)}, {points(row.delta_ci_high)}]"


def _limits(rows: Sequence[CellRow]) -> list[Block]:
    sentences = [_resolution(resolution) for resolution in resolutions(rows)]
    first = rows[0]
    if any(row.clock == "virtual" for row in rows):
        sentences.append(
            f"Time is simulated: a transfer takes bytes over the bandwidth of the link `{first.link}`, compute "
            "what was recorded once. So speeds compare decisions on such a machine; they are not measurements of "
            f"`{first.device}`."
        )
    models, seeds = ordered(row.model for row in rows), sorted({row.seed for row in rows})
    sentences.append(
        f"{'One model' if len(models) == 1 else 'Models'} ({', '.join(f'`{m}`' for m in models)}), batches of "
        f"{', '.join(str(size) for size in sorted({row.batch_size for row in rows}))}"
        f"{', one seed' if len(seeds) == 1 else f', {len(seeds)} seeds'}: "
        "other models, whose experts are larger and routed differently, may behave differently."
    )
    if len(seeds) > 1:
        sentences.append(
            "Seeds are not pooled: they answer the same examples. Each seed's cell is tested by itself and counts by "
            "itself in Holm's adjustment, which makes claims rarer, not easier."
        )
    sentences.append(
        "Intervals and tests take whole clusters (images) as independent, not examples. Intervals are each cell's own, "
        "not adjusted for the number of cells; p-values of claims are."
    )
    return [Bullets(sentences)]


def _resolution(task: Resolution) -> str:
    units = count(task.units, "independent unit")
    sentence = (
        f"{task.task}: from {count(task.examples, 'example')} in {units} an accuracy is known to "
        f"{100 * task.accuracy:.1f} points either way (95%), a paired difference to {100 * task.difference:.1f} in the "
        f"widest case; smaller effects may go unseen. No changed answer in {units} leaves room for up to "
        f"{percent(task.unseen)}% of others to change, unless the cell is bit-identical."
    )
    if task.units < task.units_for_margin:
        sentence += (
            f" To rule out a change of {margin([task.margin])} without such a proof takes at least "
            f"{task.units_for_margin} units, even if no score changes."
        )
    return sentence
