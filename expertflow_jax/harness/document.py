"""A report as a list of blocks, written as Markdown or as one self-contained HTML page. Same blocks, same text.

Texts may hold `code` and **strong**, in Markdown's own marks; everything else is shown as it is.
"""

import base64
import dataclasses
import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    level: int
    text: str


@dataclasses.dataclass(frozen=True)
class Paragraph:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Bullets:
    """A list of points."""

    points: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Code:
    """Text as it is, in a fixed-width font; `summary` folds it away in HTML."""

    text: str
    summary: str = ""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A PNG file: linked from Markdown by its path relative to the report, inlined in HTML."""

    path: Path
    text: str


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
      numeric: which columns are right-aligned.
      keys: what each cell sorts by, same shape as rows; None sorts last. Without keys, texts are sorted by.
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]
    keys: Sequence[Sequence[str | float | None]] | None = None


Block = Heading | Paragraph | Bullets | Code | Picture | Grid


def to_markdown(blocks: Iterable[Block], folder: Path = Path()) -> str:
    """The blocks as Markdown of a file in `folder`, to which pictures are relative."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {text}"
        case Paragraph(text):
            return text
        case Bullets(points):
            return "\n".join(f"- {point}" for point in points)
        case Code(text, summary):
            return (f"{summary}:\n\n" if summary else "") + f"```\n{text.strip()}\n```"
        case Picture(path, text):
            return f"![{text}]({path.relative_to(folder).as_posix()})"
        case Grid(titles, rows, numeric):
            rule = ["---:" if right else "---" for right in numeric]
            lines = [titles, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def to_html(blocks: Sequence[Block]) -> str:
    """The blocks as one page that needs no other file; a click on a table's heading sorts it."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "report")
    body = "\n".join(_html(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{_inline(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Bullets(points):
            return "<ul>\n" + "\n".join(f"<li>{_inline(point)}</li>" for point in points) + "\n</ul>"
        case Code(text, summary):
            shown = f"<pre>{html.escape(text.strip())}</pre>"
            return f"<details><summary>{_inline(summary)}</summary>{shown}</details>" if summary else shown
        case Picture(path, text):
            data = base64.b64encode(path.read_bytes()).decode()
            return (
                f'<figure><img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'
                f"<figcaption>{_inline(text)}</figcaption></figure>"
            )
        case Grid():
            return _html_grid(block)


def _html_grid(grid: Grid) -> str:
    kinds = [' class="n"' if right else "" for right in grid.numeric]
    head = "".join(
        f'<th{kind}><button type="button">{_inline(t)}</button></th>'
        for t, kind in zip(grid.titles, kinds, strict=True)
    )
    lines = []
    for row, keys in zip(grid.rows, grid.keys or grid.rows, strict=True):
        cells = []
        for text, key, kind in zip(row, keys, kinds, strict=True):
            sort = "" if key is None or str(key) == text else f' data-key="{html.escape(str(key))}"'
            missing = ' data-none=""' if key is None else ""
            cells.append(f"<td{kind}{sort}{missing}>{_inline(text)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _inline(text: str) -> str:
    safe = html.escape(text, quote=False)
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", re.sub(r"`(.+?)`", r"<code>\1</code>", safe))


_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
ul, p { max-width: 60rem; overflow-wrap: anywhere; }
code, pre { font: .88em ui-monospace, monospace; }
pre { overflow-x: auto; background: #8881; padding: .8rem; border-radius: .3rem; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; background: white; }
figcaption { color: #888; font-size: .9rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; text-align: left; }
.n { text-align: right; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:hover, th button:focus-visible { text-decoration: underline; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
tbody tr:hover { background: #8882; }
"""

_SCRIPT = """
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const th = button.parentElement, body = th.closest("table").tBodies[0], i = th.cellIndex;
  const up = th.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
  th.parentElement.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[i].dataset.key ?? row.cells[i].textContent;
  const none = row => row.cells[i].dataset.none !== undefined;
  [...body.rows].sort((a, b) => none(a) - none(b) || sign * (isNaN(key(a)) || isNaN(key(b))
    ? key(a).localeCompare(key(b)) : key(a) - key(b))).forEach(row => body.append(row));
}));
"""
