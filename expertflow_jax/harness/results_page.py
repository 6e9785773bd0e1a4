"""Makes docs/results.md from the table of fields: python -m expertflow_jax.harness.results_page > docs/results.md"""

import math

from expertflow_jax.harness.document import Block, Bullets, Grid, Heading, Paragraph, to_markdown
from expertflow_jax.harness.fields import FIELDS, Field

_FILES = (
    "`study`: `eval.study`, results.jsonl and results.csv, one row per cell;",
    "`throughput`: `eval.throughput`, results.jsonl and results.csv, one row per cell and variant;",
    "`scale`: `eval.simulate` (study `growth`), results.jsonl, rows of kind `host` or `scheduler`;",
    "`ablations`: `eval.simulate` (study `ablations`), ablations.jsonl, one row per setting and variant;",
    "`blocks`, `lossy`: `eval.simulate` (studies of these names), results.jsonl, one row per cell.",
)


def results_page() -> str:
    """The page as Markdown."""
    blocks: list[Block] = [
        Heading(1, "Result rows"),
        Paragraph(
            "Every key of every row, in the order in which rows and columns have them. Rates are in [0, 1], times in "
            "seconds, sizes in bytes. This page is made from `expertflow_jax/harness/fields.py`, which checks each "
            "row before it is written; run `python -m expertflow_jax.harness.results_page > docs/results.md` after a "
            "change there."
        ),
        Bullets(_FILES),
        Grid(
            ("key", "type", "range", "unit", "written by", "meaning"),
            [_line(field) for field in FIELDS.values()],
            [False] * 6,
        ),
    ]
    return to_markdown(blocks)


def _line(field: Field) -> tuple[str, ...]:
    kind = field.kind.__name__ + (" or null" if field.optional else "")
    return f"`{field.name}`", kind, _range(field), field.unit, ", ".join(field.commands.split()), field.meaning


def _range(field: Field) -> str:
    if field.kind in (str, bool) or (math.isinf(field.low) and math.isinf(field.high)):
        return ""
    if math.isinf(field.high):
        return f"{field.low:g} and above"
    return f"{field.high:g} and below" if math.isinf(field.low) else f"{field.low:g} to {field.high:g}"


if __name__ == "__main__":
    print(results_page(), end="")
