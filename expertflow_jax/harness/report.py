"""What reports have in common: tables that are printed too, the files a run was made of, and both forms written."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from expertflow_jax.files import write_atomically
from expertflow_jax.harness.document import Block, Code, Grid, Heading, Paragraph, to_html, to_markdown
from expertflow_jax.harness.workdir import read_json


def sections(grids: Iterable[tuple[str, str, Grid]], console: Console) -> list[Block]:
    """A heading, a text and a table for each (title, text, grid) that has rows; printed without the text."""
    blocks: list[Block] = []
    for title, text, grid in grids:
        if not grid.rows:
            continue
        blocks += [Heading(2, title), Paragraph(text), grid]
        console.print(title, highlight=False)
        console.print(plain(grid), highlight=False, soft_wrap=True, markup=False)
    return blocks


def plain(grid: Grid) -> str:
    """The table as aligned text."""
    lines = [grid.titles, *grid.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(grid.titles))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, grid.numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def attached(workdir: Path, names: Iterable[str]) -> list[Block]:
    """The JSON files of these names that are there."""
    blocks: list[Block] = []
    for name in names:
        if (workdir / name).exists():
            text = json.dumps(read_json(workdir / name), indent=2)
            blocks += [Heading(2, name.removesuffix(".json").capitalize()), Code(text, name)]
    return blocks


def write(workdir: Path, blocks: Sequence[Block]) -> None:
    """Writes report.md and report.html."""
    write_atomically(workdir / "report.md", to_markdown(blocks, workdir).encode())
    write_atomically(workdir / "report.html", to_html(blocks).encode())
