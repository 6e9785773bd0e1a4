"""How fast a study's lossless cells are, and why: numbers first, then their sentences. Speeds compare equal sizes."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from expertflow_jax.harness.document import Block, Bullets, Grid, Paragraph
from expertflow_jax.harness.looks import ordered
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.tables import MISSING, Comparisons, in_order
from expertflow_jax.studies.accuracy.wording import clock_note, span

SUBJECT = "expertflow"


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
    """A scheduler against order of arrival: distinct experts per batch, and ratios to those and to the speed there."""

    scheduler: str
    experts: list[float]
    expert_ratios: list[float]
    speed_ups: list[float]


def speed_ups(rows: Sequence[CellRow]) -> list[Against]:
    """The subject against every other policy that some cell of it can be compared with."""
    compare, subject = Comparisons(rows), in_order(_plain(rows, SUBJECT))
    others = []
    for policy in ordered(row.policy for row in rows if row.policy != SUBJECT):
        ratios: dict[str, list[float]] = {}
        for row in subject:
            ratio = compare.speed_up(row, policy=policy)
            if ratio is not None:
                ratios.setdefault(f"{row.cache_fraction:.3g}", []).append(ratio)
        if ratios:
            cells = _plain(rows, policy)
            others.append(Against(policy, _aim(cells), ratios, _at_equal_memory(subject, cells)))
    return others


def _aim(cells: Sequence[CellRow]) -> str:
    if any(row.forecast == "truth" for row in cells):
        return ", which knows the routing"
    return ", which has all experts on the device" if any(row.policy == "resident" for row in cells) else ""


def speed(rows: Sequence[CellRow]) -> list[Block]:
    """Sentences and a table of `speed_ups`."""
    others = speed_ups(rows)
    if not others:
        return []
    points = [
        f"Against `{other.policy}`{other.aim}: **{span(other.all_ratios)}** the tokens per second "
        f"({verdict(other.all_ratios)})."
        for other in others
    ]
    subject = _plain(rows, SUBJECT)
    sizes = _sizes(subject)
    lines = [[o.policy, *(span(o.ratios[size]) if size in o.ratios else MISSING for size in sizes)] for o in others]
    spread = "range over tasks and seeds" if len({(r.task, r.seed) for r in subject}) > 1 else "one task and seed"
    return [
        Paragraph(f"`{SUBJECT}` in order of arrival, waiting for misses, at equal cache size{clock_note(rows)}:"),
        Bullets(points + _equal_memory_points(rows, [o for o in others if not o.aim])),
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


def _at_equal_memory(subject: Sequence[CellRow], others: Sequence[CellRow]) -> list[float]:
    ratios = []
    for row in subject:
        curve = [other for other in others if (other.task, other.seed) == (row.task, row.seed)]
        curve.sort(key=lambda other: other.memory_budget_bytes)
        memory = [other.memory_budget_bytes for other in curve]
        if curve and memory[0] <= row.memory_budget_bytes <= memory[-1]:
            rate = np.interp(row.memory_budget_bytes, memory, [other.tokens_per_second for other in curve])
            ratios.append(row.tokens_per_second / float(rate))
    return ratios


def _predictor_bytes(rows: Sequence[CellRow], policies: Sequence[str]) -> int:
    """What the subject takes beyond others with the same slots, at most."""
    plain = _plain(rows)
    budgets = {(r.task, r.seed, r.slots, r.policy): r.memory_budget_bytes for r in plain}
    pairs = [
        (row.memory_budget_bytes, budgets.get((row.task, row.seed, row.slots, policy)))
        for row in plain
        if row.policy == SUBJECT
        for policy in policies
    ]
    return max((subject - other for subject, other in pairs if other is not None), default=0)


def _equal_memory_points(rows: Sequence[CellRow], others: Sequence[Against]) -> list[str]:
    extra = max(0, _predictor_bytes(rows, [other.policy for other in others]))
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
    for task in sorted({row.task for row in plain}):
        means = mean_hit_rates(plain, task, middle)
        order = ""
        for i, (rate, policy) in enumerate(means):
            relation = "" if not i else " = " if f"{rate:.3f}" == f"{means[i - 1][0]:.3f}" else " > "
            order += f"{relation}`{policy}` {rate:.3f}"
        if order:
            points.append(f"{task}, hit rates at cache fraction {middle:.3g}: {order}.")
    return [
        Bullets(points),
        Paragraph("A request counts as a hit only if the expert is in its slot when it is asked for."),
    ]


def scheduler_effects(rows: Sequence[CellRow]) -> list[SchedulerEffect]:
    """What regrouping changes for the subject, pair by pair of equal size, task and seed."""
    compare = Comparisons(rows)
    subject = [row for row in rows if row.policy == SUBJECT and row.lossless and row.scheduler != "fifo"]
    effects = []
    for scheduler in ordered(row.scheduler for row in subject):
        cells = [(row, compare.same_size(row, policy=SUBJECT)) for row in subject if row.scheduler == scheduler]
        pairs = [
            (row, fifo) for row, fifo in cells if fifo is not None and fifo.experts_per_batch and fifo.tokens_per_second
        ]
        if pairs:
            effects.append(
                SchedulerEffect(
                    scheduler,
                    [row.experts_per_batch for row, _ in pairs],
                    [row.experts_per_batch / fifo.experts_per_batch for row, fifo in pairs],
                    [row.tokens_per_second / fifo.tokens_per_second for row, fifo in pairs],
                )
            )
    return effects


def schedulers(rows: Sequence[CellRow]) -> list[Block]:
    """Sentences of `scheduler_effects`."""
    points = [
        f"`{effect.scheduler}`{', the control' if effect.scheduler == 'random' else ''}: "
        f"{span(effect.experts, '{:.1f}')} distinct experts per batch and layer "
        f"({span((100 * (ratio - 1) for ratio in effect.expert_ratios), '{:+.1f}%')}), {span(effect.speed_ups)} the "
        "tokens per second."
        for effect in scheduler_effects(rows)
    ]
    if not points:
        return []
    return [Paragraph(f"With `{SUBJECT}` and no losses, against `fifo` at the same cache size:"), Bullets(points)]
