"""What blocks of batches buy in a study, and what they cost: cells against the same cells batch by batch.

M is the number of batches per block.
"""

import dataclasses
from collections.abc import Callable, Sequence

from expertflow_jax.harness.document import Block, Bullets, Grid, Paragraph
from expertflow_jax.harness.looks import ordered
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.performance import SUBJECT, at_equal_memory
from expertflow_jax.studies.accuracy.tables import MISSING, Comparisons, block_sizes
from expertflow_jax.studies.accuracy.wording import clock_note, count, in_blocks, span

BASELINE = "cache_moe"  # the best without a forecast
_MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Gain:
    """A lossless cell in blocks, and the same batch by batch; `resident` with its scheduler, if that ran."""

    row: CellRow
    alone: CellRow
    resident: CellRow | None

    @property
    def speed_up(self) -> float:
        """Tokens per second over those batch by batch."""
        return self.row.tokens_per_second / self.alone.tokens_per_second

    @property
    def bytes_share(self) -> float | None:
        """Bytes moved over those batch by batch."""
        before = self.alone.bytes_transferred
        return self.row.bytes_transferred / before if before else None

    @property
    def of_resident(self) -> float | None:
        """Tokens per second over those with all experts on the device."""
        return self.row.tokens_per_second / self.resident.tokens_per_second if self.resident else None

    @property
    def first_token(self) -> float | None:
        """Time to the first token over that batch by batch."""
        after, before = self.row.first_token_seconds, self.alone.first_token_seconds
        return after / before if after and before else None

    @property
    def more_memory(self) -> float:
        """MiB of device memory that the block takes beyond a single batch."""
        return (self.row.memory_budget_bytes - self.alone.memory_budget_bytes) / _MIB


def gains(rows: Sequence[CellRow]) -> list[Gain]:
    """One per lossless cell in blocks that also ran batch by batch; all-resident ones left out."""
    compare, pairs = Comparisons(rows), []
    for row in rows:
        if row.batches_per_block == 1 or not row.lossless or row.policy == "resident":
            continue
        alone = compare.same_size(row, policy=row.policy, scheduler=row.scheduler, batches_per_block=1)
        if alone is not None and alone.tokens_per_second and row.tokens_per_second:
            pairs.append(Gain(row, alone, compare.same_size(row, policy="resident", scheduler=row.scheduler)))
    return pairs


def blocks_answer(rows: Sequence[CellRow]) -> str:
    """One sentence on the subject's largest blocks in order of arrival; "" without any."""
    plain = [gain for gain in gains(rows) if (gain.row.policy, gain.row.scheduler) == (SUBJECT, "fifo")]
    if not plain:
        return ""
    largest = max(gain.row.batches_per_block for gain in plain)
    cells = [gain for gain in plain if gain.row.batches_per_block == largest]
    sentence = (
        f"Blocks of {largest} batches make `{SUBJECT}` **{span(gain.speed_up for gain in cells)}** as fast as single "
        "batches with as many slots"
    )
    if waits := [gain.first_token for gain in cells if gain.first_token]:
        sentence += f"; the first token then takes {span(waits)} as long"
    return sentence + "."


def block_findings(rows: Sequence[CellRow]) -> list[Block]:
    """Sentences and a table; nothing where a study has no cell in blocks that also ran batch by batch."""
    every = gains(rows)
    if not every:
        return []
    plain = [gain for gain in every if gain.row.scheduler == "fifo"]
    points = [
        _buys(policy, size, [g for g in plain if (g.row.policy, g.row.batches_per_block) == (policy, size)])
        for policy in ordered(gain.row.policy for gain in plain)
        for size in block_sizes(gain.row for gain in plain if gain.row.policy == policy)
    ]
    points += _costs(plain)
    points += _equal_memory(rows, plain)
    return [
        Paragraph(
            "Batches of a block go through the layers together, so that an expert travels once for all of them. "
            "Against the same policy batch by batch, with as many slots, waiting for misses, in order of arrival"
            f"{clock_note(rows)}:"
        ),
        Bullets(points),
        Paragraph(
            "The first token is counted from the moment that a batch begins, a mean over questions; what a question "
            "waits before that is not counted. Memory is what the KV caches and hidden states of more batches take."
        ),
        _grid(every),
    ]


def _buys(policy: str, size: int, cells: Sequence[Gain]) -> str:
    sentence = f"`{policy}`{in_blocks(size)}: **{span(gain.speed_up for gain in cells)}** the tokens per second"
    if shares := [gain.bytes_share for gain in cells if gain.bytes_share is not None]:
        sentence += f", {span(shares)} the bytes moved"
    if parts := [gain.of_resident for gain in cells if gain.of_resident is not None]:
        sentence += f"; {span(parts)} the speed of the all-resident run"
    return sentence + "."


def _costs(cells: Sequence[Gain]) -> list[str]:
    sentences = []
    for size in block_sizes(gain.row for gain in cells):
        here = [gain for gain in cells if gain.row.batches_per_block == size and gain.first_token]
        if here:
            before, after = (
                span((1000 * (row.first_token_seconds or 0.0) for row in some), "{:.0f}")
                for some in ([gain.alone for gain in here], [gain.row for gain in here])
            )
            sentences.append(
                f"The cost of blocks of {size} batches: the first token comes after {after} ms instead of {before} "
                f"(**{span(gain.first_token or 0.0 for gain in here)}** as long), and up to "
                f"{max(gain.more_memory for gain in here):.2f} MiB more of device memory{_beyond_resident(here)}."
            )
    return sentences


def _beyond_resident(cells: Sequence[Gain]) -> str:
    """What is to be said where all experts would fit into the memory of the block."""
    pairs = [(gain.row, gain.resident) for gain in cells if gain.resident is not None]
    beyond = [whole for row, whole in pairs if row.memory_budget_bytes >= whole.memory_budget_bytes]
    if not beyond:
        return ""
    needs = span((whole.memory_budget_bytes / _MIB for whole in beyond), "{:.1f}")
    return (
        f"; in {len(beyond)} of {count(len(pairs), 'cell')} all experts, batch by batch, would fit into as much "
        f"({needs} MiB): this model's experts are small beside the caches of so many sequences"
    )


def _equal_memory(rows: Sequence[CellRow], cells: Sequence[Gain]) -> list[str]:
    """The subject in blocks against the best rival batch by batch in the same memory."""
    single = [r for r in rows if r.policy == BASELINE and r.scheduler == "fifo" and r.lossless]
    sentences = []
    for size in block_sizes(gain.row for gain in cells):
        subject = [g.row for g in cells if (g.row.policy, g.row.batches_per_block) == (SUBJECT, size)]
        if ratios := at_equal_memory(subject, single, 1):
            sentences.append(
                f"At equal device memory, everything counted, `{SUBJECT}`{in_blocks(size)} is at "
                f"**{span(ratios)}** the speed of `{BASELINE}` batch by batch (interpolated between its sizes)."
            )
    return sentences


def _grid(cells: Sequence[Gain]) -> Grid:
    """A line per policy, scheduler, M and cache fraction: ranges over tasks and seeds."""
    groups: dict[tuple, list[Gain]] = {}
    for gain in cells:
        row = gain.row
        key = (row.policy, row.scheduler, row.batches_per_block, f"{row.cache_fraction:.3g}")
        groups.setdefault(key, []).append(gain)
    titles = ["policy", "scheduler", "M", "cache fraction", "over single batches", "of resident speed", "bytes"]
    titles += ["first token, ms", "in single batches, ms", "MiB more"]
    lines = [
        [policy, scheduler, str(size), fraction, *_numbers(g)]
        for (policy, scheduler, size, fraction), g in groups.items()
    ]
    return Grid(titles, lines, [False, False] + [True] * 8)


def _numbers(group: Sequence[Gain]) -> list[str]:
    def ranged(value: Callable[[Gain], float | None], form: str = "{:.2f}x") -> str:
        known = [number for gain in group if (number := value(gain)) is not None]
        return span(known, form) if known else MISSING

    def milliseconds(row: CellRow) -> float | None:
        return None if row.first_token_seconds is None else 1000 * row.first_token_seconds

    return [
        ranged(lambda gain: gain.speed_up),
        ranged(lambda gain: gain.of_resident),
        ranged(lambda gain: gain.bytes_share),
        ranged(lambda gain: milliseconds(gain.row), "{:.0f}"),
        ranged(lambda gain: milliseconds(gain.alone), "{:.0f}"),
        ranged(lambda gain: gain.more_memory, "{:.2f}"),
    ]
