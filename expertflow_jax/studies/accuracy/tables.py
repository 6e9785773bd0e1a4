"""A study's rows as tables, and the ratios that the tables, the plots and the words share.

A *speed-up* compares tokens per second with another cell of the same task, seed, cache size and batches per block (M).
Cells are compared at the same number of slots or, if their size was given in bytes, at the same memory budget.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.table import Table

from expertflow_jax.harness.looks import ordered
from expertflow_jax.harness.rows import CellRow

MISSING = "-"


def in_order(rows: Iterable[CellRow]) -> list[CellRow]:
    """Rows by task, seed, policy, scheduler, losses, batches per block and size."""
    cells = list(rows)
    names = ordered(name for row in cells for name in (row.policy, row.scheduler, row.losses))
    place = {name: i for i, name in enumerate(names)}
    return sorted(
        cells,
        key=lambda r: (
            *(r.task, r.seed, place[r.policy], place[r.scheduler], place[r.losses]),
            *(r.batches_per_block, r.slots, r.cell_id),
        ),
    )


class Comparisons:
    """Finds the cell that another one is compared with."""

    def __init__(self, rows: Iterable[CellRow]):
        self._by_slots: dict[tuple, CellRow] = {}
        self._by_budget: dict[tuple, CellRow] = {}
        self._by_name: dict[tuple, CellRow] = {}
        self._resident: dict[tuple, CellRow] = {}
        for row in rows:
            key = (row.task, row.seed, row.policy, row.scheduler, row.losses, row.batches_per_block)
            self._by_slots[*key, row.slots] = row
            self._by_budget[*key, row.memory_budget_bytes] = row
            self._by_name[*key, row.size] = row
            if row.policy == "resident" and row.lossless:
                where = (row.task, row.seed, row.scheduler)
                self._resident[where] = min(row, self._resident.get(where, row), key=lambda r: r.batches_per_block)

    def same_size(
        self,
        row: CellRow,
        *,
        policy: str,
        scheduler: str = "fifo",
        losses: str = "wait",
        batches_per_block: int | None = None,
    ) -> CellRow | None:
        """The cell of the same task, seed and size with these names (`CellRow.losses`), and of the row's own batches
        per block by default. `resident` has but one size, and is taken batch by batch."""
        if policy == "resident":
            return self._resident.get((row.task, row.seed, scheduler))
        key = (row.task, row.seed, policy, scheduler, losses, batches_per_block or row.batches_per_block)
        return (
            self._by_slots.get((*key, row.slots))
            or self._by_budget.get((*key, row.memory_budget_bytes))
            or self._by_name.get((*key, row.size))
        )

    def speed_up(self, row: CellRow, **other: Any) -> float | None:
        """Tokens per second of `row` over those of `same_size(row, **other)`, if there is such a cell."""
        partner = self.same_size(row, **other)
        return row.tokens_per_second / partner.tokens_per_second if partner and partner.tokens_per_second else None


@dataclasses.dataclass(frozen=True)
class Column:
    """One column: what stands in it and what it sorts by.

    Attributes:
      title: of the report's table; `short` of the terminal's.
      value: of a row, for sorting; None if it has none.
      text: the value as shown.
    """

    title: str
    short: str
    value: Callable[[CellRow], str | float | None]
    text: Callable[[CellRow], str]

    @property
    def numeric(self) -> bool:
        """Whether the column is right-aligned and sorts by number."""
        return self.title not in ("task", "policy", "scheduler", "losses")


def _name(title: str, short: str, key: str) -> Column:
    return Column(title, short, lambda row: getattr(row, key), lambda row: getattr(row, key))


def _number(title: str, short: str, value: Callable[[CellRow], float | None], form: str) -> Column:
    def text(row: CellRow) -> str:
        number = value(row)
        return MISSING if number is None else form.format(number)

    return Column(title, short, value, text)


def stall_share(row: CellRow) -> float | None:
    """Share of the time in which compute waited for an expert."""
    return row.stall_seconds / row.wall_seconds if row.wall_seconds else None


def _accuracy(row: CellRow) -> str:
    if not row.scored:
        return MISSING
    return f"{percent(row.accuracy)} [{percent(row.accuracy_ci_low)}, {percent(row.accuracy_ci_high)}]"


def percent(share: float) -> str:
    """A share as a percentage with one decimal: "73.4"."""
    return f"{100 * share:.1f}"


def points(difference: float) -> str:
    """A difference of shares in percentage points with its sign: "-0.8"; "0.0" only if there is none."""
    return f"{100 * difference:+.1f}" if difference else "0.0"


def block_sizes(rows: Iterable[CellRow]) -> list[int]:
    """The numbers of batches per block among the rows, ascending."""
    return sorted({row.batches_per_block for row in rows})


def of_least_blocks(rows: Sequence[CellRow]) -> list[CellRow]:
    """Cells of the fewest batches per block, all-resident ones (whose reference is always batch by batch) apart."""
    least = {
        whole: min(block_sizes(row for row in rows if (row.policy == "resident") == whole), default=1)
        for whole in (True, False)
    }
    return [row for row in rows if row.batches_per_block == least[row.policy == "resident"]]


def main_columns(rows: Sequence[CellRow]) -> list[Column]:
    """The columns in which every table of these rows shows them; "M" only where cells differ in it."""
    compare = Comparisons(rows)
    blocks = [_number("M", "M", lambda row: row.batches_per_block, "{:d}")] if len(block_sizes(rows)) > 1 else []
    return [
        _name("task", "task", "task"),
        _name("policy", "policy", "policy"),
        _name("scheduler", "sched.", "scheduler"),
        _name("losses", "losses", "losses"),
        *blocks,
        _number("cache fraction", "cache", lambda row: row.cache_fraction, "{:.3g}"),
        _number("hit rate", "hits", lambda row: row.hit_rate, "{:.3f}"),
        Column(
            "accuracy % [95% interval]",
            "accuracy % [95%]",
            lambda row: row.accuracy,
            _accuracy,
        ),
        Column(
            "difference, points",
            "delta",
            lambda row: row.accuracy_delta,
            lambda row: points(row.accuracy_delta) if row.scored else MISSING,
        ),
        _number("changed answers", "flips", lambda row: row.flips, "{:d}"),
        Column(
            "bit-identical",
            "bits",
            lambda row: float(row.bit_identical),
            lambda row: "same" if row.bit_identical else "differ",
        ),
        *(
            [_number("perplexity", "ppl", lambda row: row.perplexity, "{:.3f}")]
            if any(r.perplexity for r in rows)
            else []
        ),
        _number("tokens/s", "tok/s", lambda row: row.tokens_per_second, "{:.0f}"),
        _number("over on_demand", "speed", lambda row: compare.speed_up(row, policy="on_demand"), "{:.2f}x"),
        _number("stall share", "stall", stall_share, "{:.0%}"),
        _number("moved MB", "MB", lambda row: row.bytes_transferred / 1e6, "{:.0f}"),
    ]


def render_table(rows: Sequence[CellRow]) -> Table:
    """The rows for a terminal of 118 columns; a column "seed" joins if there are several."""
    columns = main_columns(rows)
    if len({row.seed for row in rows}) > 1:
        columns.insert(4, _number("seed", "seed", lambda row: row.seed, "{:d}"))
    table = Table(box=None, padding=(0, 1), collapse_padding=True, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.short, justify="right" if column.numeric else "left", overflow="fold")
    previous = None
    for row in in_order(rows):
        if previous and previous.task != row.task:
            table.add_row()
        table.add_row(*(column.text(row) for column in columns))
        previous = row
    table.caption = "95% intervals are each cell's own, not adjusted"
    if any(row.clock == "virtual" for row in rows):
        table.caption += "; tok/s, speed (over on_demand) and stall are simulated time"
    table.caption_justify = "left"
    return table
