"""A report's tables as files that a paper takes: LaTeX (booktabs) and CSV, one of each per table."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

from expertflow_jax.files import make_folder, write_atomically
from expertflow_jax.harness.document import Block, Grid, Heading

_PAGE = 40  # lines
_SPECIAL = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
}


def write_tables(blocks: Sequence[Block], folder: Path) -> None:
    """Writes NN_<last heading>.tex and .csv for each table, numbered in their order; other tables there are removed."""
    make_folder(folder)
    contents: dict[str, str] = {}
    title = "table"
    for block in blocks:
        if isinstance(block, Heading):
            title = block.text
        if isinstance(block, Grid):
            name = f"{len(contents) // 2 + 1:02d}_{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}"
            contents[f"{name}.tex"] = to_latex(block, title)
            contents[f"{name}.csv"] = to_csv(block)
    for path in [*folder.glob("[0-9][0-9]_*.tex"), *folder.glob("[0-9][0-9]_*.csv")]:
        if path.name not in contents:
            path.unlink()
    for name, text in contents.items():
        write_atomically(folder / name, text.encode())


def to_latex(grid: Grid, caption: str) -> str:
    """A `tabular` of booktabs in a `table`, or a `longtable` where it is longer than a page; texts are escaped, `code`
    becomes \\texttt and **strong** \\textbf."""
    columns = "".join("r" if right else "l" for right in grid.numeric)
    head = ["\\toprule", _row(grid.titles), "\\midrule"]
    body = [*map(_row, grid.rows), "\\bottomrule"]
    if len(grid.rows) > _PAGE:
        begin = [f"\\begin{{longtable}}{{{columns}}}", f"\\caption{{{_latex(caption)}}} \\\\"]
        lines = ["% needs \\usepackage{booktabs,longtable}", *begin, *head, "\\endhead", *body, "\\end{longtable}"]
    else:
        begin = ["\\begin{table}", "\\centering", f"\\caption{{{_latex(caption)}}}", f"\\begin{{tabular}}{{{columns}}}"]
        lines = ["% needs \\usepackage{booktabs}", *begin, *head, *body, "\\end{tabular}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def to_csv(grid: Grid) -> str:
    """The table with its titles, as it reads, without marks."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([[_plain(cell) for cell in line] for line in (grid.titles, *grid.rows)])
    return text.getvalue()


def _row(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + " \\\\"


def _latex(text: str) -> str:
    safe = "".join(_SPECIAL.get(character, character) for character in text)
    safe = re.sub(r"`(.+?)`", r"\\texttt{\1}", safe)
    return re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", safe)


def _plain(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"\1", re.sub(r"`(.+?)`", r"\1", text))
