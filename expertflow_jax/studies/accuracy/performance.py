"""How fast a study's lossless cells are, and why: numbers first, then their sentences. Speeds compare equal sizes, and
equal numbers of batches per block (M); `blocks` compares these with each other.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from expertflow_jax.harness.document import Block, Bullets, Grid, Paragraph
from expertflow_jax.harness.looks import ordered
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.tables import MISSING, Comparisons, block_sizes, in_order
from expertflow_jax.studies.accuracy.wording import clock_note, in_blocks, span

SUBJECT = "expertflow"
_PAYS = 1.01  # times the speed of `fifo` at which regrouping is said to pay


@dataclasses.dataclass(frozen=True)
class Against:
    """Tokens per second of the subject over another policy's, both in order of arrival and waiting for misses.

    Attributes:
      aim: what the policy has that no rival could have, as a clause; "" for a rival.
      ratios: one per cell of the subject that has a partner of its size, by cache fraction as shown.
      at_equal_memory: with the other's rate interpolated at the subject's memory, which holds a predictor too.
    """

    policy: str
    aim: str
    ratios: dict[str, list[float]]
    at_equal_memory: list[float]

    @property
    def all_ratios(self) -> list[float]:
        """Those of every size."""
        return [ratio for ratios in self.ratios.values() for ratio in ratios]


@dataclasses.dataclass(frozen=True)
class SchedulerEffect:
    """A scheduler against order of arrival, in blocks of as many batches: distinct experts per batch, and ratios to
    those and to the speed there."""

    scheduler: str
    batches_per_block: int
    experts: list[float]
    expert_ratios: list[float]
    speed_ups: list[float]


def subject_blocks(rows: Sequence[CellRow]) -> list[int]:
    """The numbers of batches per block that the subject ran with, in order of arrival and waiting, ascending."""
    return block_sizes(_plain(rows, SUBJECT))


def speed_ups(rows: Sequence[CellRow], batches_per_block: int) -> list[Against]:
    """The subject against every other policy that some cell of it, in blocks of this size, can be compared with."""
    compare = Comparisons(rows)
    subject = in_order(r for r in _plain(rows, SUBJECT) if r.batches_per_block == batches_per_block)
    others = []
    for policy in ordered(row.policy for row in rows if row.policy != SUBJECT):
        ratios: dict[str, list[float]] = {}
        for row in subject:
            ratio = compare.speed_up(row, policy=policy)
            if ratio is not None:
                ratios.setdefault(f"{row.cache_fraction:.3g}", []).append(ratio)
        if ratios:
            cells = _plain(rows, policy)
            others.append(Against(policy, _aim(cells), ratios, at_equal_memory(subject, cells)))
    return others


def _aim(cells: Sequence[CellRow]) -> str:
    if any(row.forecast == "truth" for row in cells):
        return ", which knows the routing"
    return ", which has all experts on the device" if any(row.policy == "resident" for row in cells) else ""


def speed(rows: Sequence[CellRow]) -> list[Block]:
    """Sentences and a table of `speed_ups`, for each size of blocks."""
    return [block for size in subject_blocks(rows) for block in _speed(rows, size)]


def _speed(rows: Sequence[CellRow], batches_per_block: int) -> list[Block]:
    others = speed_ups(rows, batches_per_block)
    if not others:
        return []
    points = [
        f"Against `{other.policy}`{other.aim}: **{span(other.all_ratios)}** the tokens per second "
        f"({verdict(other.all_ratios)})."
        for other in others
    ]
    subject = [row for row in _plain(rows, SUBJECT) if row.batches_per_block == batches_per_block]
    sizes = _sizes(subject)
    lines = [[o.policy, *(span(o.ratios[size]) if size in o.ratios else MISSING for size in sizes)] for o in others]
    spread = "range over tasks and seeds" if len({(r.task, r.seed) for r in subject}) > 1 else "one task and seed"
    return [
        Paragraph(
            f"`{SUBJECT}` in order of arrival{in_blocks(batches_per_block)}, waiting for misses, at equal cache size"
            f"{clock_note(rows)}:"
        ),
        Bullets(points + _equal_memory_points(subject, rows, [o for o in others if not o.aim])),
        Paragraph(f"The same by cache fraction ({spread}):"),
        Grid(["against", *sizes], lines, [False] + [True] * len(sizes)),
    ]


def verdict(ratios: Sequence[float]) -> str:
    """Whether all of them say the same."""
    return "faster in every cell" if min(ratios) > 1 else "slower in every cell" if max(ratios) < 1 else "mixed"


def _plain(rows: Sequence[CellRow], policy: str | None = None) -> list[CellRow]:
    """Lossless cells in order of arrival."""
    plain = [row for row in rows if row.scheduler == "fifo" and row.lossless]
    return [row for row in plain if row.policy == policy] if policy else plain


def _sizes(rows: Iterable[CellRow]) -> list[str]:
    """Cache fractions as they are shown, ascending."""
    return [f"{fraction:.3g}" for fraction in sorted({float(f"{row.cache_fraction:.3g}") for row in rows})]


def at_equal_memory(
    subject: Sequence[CellRow], others: Sequence[CellRow], batches_per_block: int | None = None
) -> list[float]:
    """Speed of each of the subject's cells over the others', interpolated between their sizes at its device memory.

    Args:
      batches_per_block: of the others; the subject's own by default.
    """
    ratios = []
    for row in subject:
        where = (row.task, row.seed, batches_per_block or row.batches_per_block)
        curve = [other for other in others if (other.task, other.seed, other.batches_per_block) == where]
        curve.sort(key=lambda other: other.memory_budget_bytes)
        memory = [other.memory_budget_bytes for other in curve]
        if curve and memory[0] <= row.memory_budget_bytes <= memory[-1]:
            rate = np.interp(row.memory_budget_bytes, memory, [other.tokens_per_second for other in curve])
            ratios.append(row.tokens_per_second / float(rate))
    return ratios


def _predictor_bytes(subject: Sequence[CellRow], rows: Sequence[CellRow], policies: Sequence[str]) -> int:
    """What the subject takes beyond others with the same slots, at most."""
    plain = _plain(rows)
    budgets = {(r.task, r.seed, r.slots, r.batches_per_block, r.policy): r.memory_budget_bytes for r in plain}
    pairs = [
        (row.memory_budget_bytes, budgets.get((row.task, row.seed, row.slots, row.batches_per_block, policy)))
        for row in subject
        for policy in policies
    ]
    return max((more - less for more, less in pairs if less is not None), default=0)


def _equal_memory_points(subject: Sequence[CellRow], rows: Sequence[CellRow], others: Sequence[Against]) -> list[str]:
    extra = max(0, _predictor_bytes(subject, rows, [other.policy for other in others]))
    clauses = [f"**{span(o.at_equal_memory)}** that of `{o.policy}`" for o in others if o.at_equal_memory]
    if not clauses or not extra:
        return []
    return [
        f"With the same slots `{SUBJECT}` takes up to {extra / 2**20:.2f} MiB more, for its predictor. At equal "
        f"memory, the other's throughput interpolated between its sizes, it reaches {' and '.join(clauses)}."
    ]


def mean_hit_rates(rows: Sequence[CellRow], task: str, cache_fraction: float) -> list[tuple[float, str]]:
    """(mean hit rate over seeds, policy) of lossless cells in order of arrival, highest first."""
    rates: dict[str, list[float]] = {}
    for row in rows:
        if row.task == task and row.cache_fraction == cache_fraction:
            rates.setdefault(row.policy, []).append(row.hit_rate or 0.0)
    return sorted(((sum(values) / len(values), policy) for policy, values in rates.items()), reverse=True)


def hit_rates(rows: Sequence[CellRow]) -> list[Block]:
    """Policies in the order of their hit rates, at the size nearest to half of all experts."""
    plain = [row for row in _plain(rows) if row.policy != "resident" and row.hit_rate is not None]
    if not plain:
        return []
    middle = min({row.cache_fraction for row in plain}, key=lambda fraction: (abs(fraction - 0.5), fraction))
    points = []
    for task, size in sorted({(row.task, row.batches_per_block) for row in plain}):
        means = mean_hit_rates([row for row in plain if row.batches_per_block == size], task, middle)
        order = ""
        for i, (rate, policy) in enumerate(means):
            relation = "" if not i else " = " if f"{rate:.3f}" == f"{means[i - 1][0]:.3f}" else " > "
            order += f"{relation}`{policy}` {rate:.3f}"
        if order:
            points.append(f"{task}, hit rates at cache fraction {middle:.3g}{in_blocks(size)}: {order}.")
    return [
        Bullets(points),
        Paragraph("A request counts as a hit only if the expert is in its slot when it is asked for."),
    ]


def scheduler_effects(rows: Sequence[CellRow]) -> list[SchedulerEffect]:
    """What regrouping changes for the subject, pair by pair of equal size, task, seed and batches per block."""
    compare = Comparisons(rows)
    subject = [row for row in rows if row.policy == SUBJECT and row.lossless and row.scheduler != "fifo"]
    effects = []
    of_each = [(size, name) for size in block_sizes(subject) for name in ordered(row.scheduler for row in subject)]
    for size, scheduler in of_each:
        cells = [
            (row, compare.same_size(row, policy=SUBJECT))
            for row in subject
            if (row.batches_per_block, row.scheduler) == (size, scheduler)
        ]
        pairs = [
            (row, fifo) for row, fifo in cells if fifo is not None and fifo.experts_per_batch and fifo.tokens_per_second
        ]
        if pairs:
            effects.append(
                SchedulerEffect(
                    scheduler,
                    size,
                    [row.experts_per_batch for row, _ in pairs],
                    [row.experts_per_batch / fifo.experts_per_batch for row, fifo in pairs],
                    [row.tokens_per_second / fifo.tokens_per_second for row, fifo in pairs],
                )
            )
    return effects


def schedulers(rows: Sequence[CellRow]) -> list[Block]:
    """Sentences of `scheduler_effects`, and whether regrouping pays inside blocks."""
    effects = scheduler_effects(rows)
    points = [
        f"`{effect.scheduler}`{in_blocks(effect.batches_per_block)}"
        f"{', the control' if effect.scheduler == 'random' else ''}: "
        f"{span(effect.experts, '{:.1f}')} distinct experts per batch and layer "
        f"({span((100 * (ratio - 1) for ratio in effect.expert_ratios), '{:+.1f}%')}), {span(effect.speed_ups)} the "
        "tokens per second."
        for effect in effects
    ]
    if not points:
        return []
    inside = [Paragraph(_inside_blocks(effects))] if any(e.batches_per_block > 1 for e in effects) else []
    return [
        Paragraph(f"With `{SUBJECT}` and no losses, against `fifo` at the same cache size:"),
        Bullets(points),
        *inside,
    ]


def _inside_blocks(effects: Sequence[SchedulerEffect]) -> str:
    """Whether a scheduler that is no control makes the subject faster in blocks of each size; below `_PAYS` in every
    cell it does not."""
    sentences = []
    for effect in effects:
        if effect.batches_per_block == 1 or effect.scheduler == "random":
            continue
        ratios = effect.speed_ups
        if min(ratios) >= _PAYS:
            answer = "still pays"
        elif max(ratios) < _PAYS:
            answer = "does not pay any more" if min(ratios) > 2 - _PAYS else "costs more than it saves"
        else:
            answer = "pays in some cells only"
        sentences.append(
            f"In blocks of {effect.batches_per_block} `{effect.scheduler}` **{answer}** ({span(ratios)}; single "
            f"batches: {_alone(effects, effect.scheduler)})."
        )
    return (
        f"Does regrouping pay inside blocks? {' '.join(sentences)} A block asks for each expert once, whichever of "
        "its batches want it, so regrouping saves bytes mainly where it moves sequences from one block to another."
    )


def _alone(effects: Sequence[SchedulerEffect], scheduler: str) -> str:
    ratios = [ratio for e in effects if (e.scheduler, e.batches_per_block) == (scheduler, 1) for ratio in e.speed_ups]
    return span(ratios) if ratios else MISSING
