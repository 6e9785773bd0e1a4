"""How a report names cells, counts and ranges, in every sentence alike."""

from collections.abc import Iterable, Sequence

from expertflow_jax.harness.rows import CellRow

LISTED = 12  # cells that a list names before it says how many more there are


def name(row: CellRow) -> str:
    """A cell in a sentence."""
    cell = f"{row.task}, `{row.policy}` / `{row.scheduler}` / `{row.losses}` at {row.cache_fraction:.3g}"
    return cell + in_blocks(row.batches_per_block)


def in_blocks(batches_per_block: int) -> str:
    """Of single batches nothing, else " in blocks of 8 batches"."""
    return f" in blocks of {batches_per_block} batches" if batches_per_block > 1 else ""


def names(rows: Sequence[CellRow]) -> str:
    """Several cells in a sentence."""
    more = f"; and {len(rows) - LISTED} more" if len(rows) > LISTED else ""
    return "; ".join(name(row) for row in rows[:LISTED]) + more


def count(number: int, noun: str) -> str:
    """ "1 cell", "2 cells"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def span(values: Iterable[float], form: str = "{:.2f}x") -> str:
    """ "1.08x to 1.44x", or "1.08x" if all read the same."""
    numbers = list(values)
    low, high = form.format(min(numbers)), form.format(max(numbers))
    return low if low == high else f"{low} to {high}"


def margin(shares: Iterable[float]) -> str:
    """Margins of equivalence: "1 point", "0.5 to 1 points"."""
    sizes = span((100 * share for share in shares), "{:.3g}")
    return f"{sizes} point" if sizes == "1" else f"{sizes} points"


def clock_note(rows: Sequence[CellRow]) -> str:
    """What a sentence about speed adds if no clock was read."""
    return ", in simulated time" if all(row.clock == "virtual" for row in rows) else ""
