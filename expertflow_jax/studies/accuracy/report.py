"""A study's report: report.md and a self-contained report.html from results.jsonl, config.json and environment.json.

Written from the files alone, so it can be made anew at any time, and is the same for the same files.
"""

import dataclasses
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from expertflow_jax.errors import InputError
from expertflow_jax.files import write_atomically
from expertflow_jax.harness.document import Block, Code, Grid, Heading, Paragraph, Picture, to_html, to_markdown
from expertflow_jax.harness.looks import ordered
from expertflow_jax.harness.paper import write_tables
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.harness.workdir import ENVIRONMENT, read_json, version_changes
from expertflow_jax.studies.accuracy.evaluators import evaluator_blocks
from expertflow_jax.studies.accuracy.findings import answer, findings
from expertflow_jax.studies.accuracy.group_report import group_blocks
from expertflow_jax.studies.accuracy.groups import read_groups
from expertflow_jax.studies.accuracy.plots import draw_plots
from expertflow_jax.studies.accuracy.result_files import read_rows
from expertflow_jax.studies.accuracy.tables import MISSING, block_sizes, in_order, main_columns, render_table
from expertflow_jax.studies.accuracy.wording import count

__all__ = ["render_table", "write_report"]


def write_report(
    workdir: str | Path, *, command: str = "python -m eval.study", cells: Collection[str] | None = None
) -> tuple[Path, Path]:
    """Writes report.md, report.html, plots/*.png and tables/* (LaTeX, CSV) into `workdir`.

    Args:
      command: how the study was started, as the report shows it.
      cells: ids of the cells to report on; None: of all that are there.

    Returns:
      Paths of report.md and report.html.

    Raises:
      InputError: no finished cell, or damaged files.
    """
    folder = Path(workdir)
    rows = in_order(row for row in read_rows(folder) if cells is None or row.cell_id in cells)
    if not rows:
        raise InputError(f"{folder}: no finished cell to report on; run the study first")
    groups = read_groups(folder)
    scored = [row for row in rows if row.scored]
    pictures = draw_plots(scored, folder / "plots", groups)
    blocks = [
        Heading(1, f"Expert offloading: {_list(r.model for r in rows)} on {_list(r.task for r in rows)}"),
        *([answer(scored)] if scored else []),
        *_without_answers(rows),
        *_opening(rows, command),
        *_versions(folder),
        *([Heading(2, "Findings"), *findings(scored), Heading(2, "Plots")] if scored else []),
        *(Picture(path, text) for path, text in pictures),
        *group_blocks(scored, groups),
        *evaluator_blocks(scored),
        Heading(2, "All cells"),
        Paragraph(
            "Differences in accuracy, in percentage points, are paired with the all-resident run in order of arrival; "
            "so are changed answers. Bit-identical: every logit equals that of the all-resident run of the same "
            "batches. Stall share: the part of the time that compute waited for experts."
            + (" M: batches per block." if len(block_sizes(rows)) > 1 else "")
        ),
        Paragraph(_adjustments(rows)),
    ]
    constant, rest = _keys(rows)
    after: list[Block] = [
        Paragraph(
            "Same in every cell: " + ", ".join(f"{key} `{_text(value)}`" for key, value in constant.items()) + "."
        ),
        Heading(2, "Config"),
        Code(_json(folder / "config.json"), "config.json"),
        Heading(2, "Environment"),
        Code(_json(folder / "environment.json"), "environment.json"),
    ]
    short, full = _grid(rows, []), _grid(rows, rest)
    files = (
        "All keys of every cell are in `results.csv`, the answers in `predictions/`. The tables of this report are in "
        "`tables/`, as LaTeX (booktabs) and CSV.",
        "A click on a heading sorts. The same rows are in `results.csv`, the answers in `predictions/`. The tables of "
        "this report are in `tables/`, as LaTeX (booktabs) and CSV.",
    )
    report, html = folder / "report.md", folder / "report.html"
    write_atomically(report, to_markdown([*blocks, Paragraph(files[0]), short, *after], folder).encode())
    write_atomically(html, to_html([*blocks, Paragraph(files[1]), full, *after]).encode())
    write_tables([*blocks, short], folder / "tables")
    return report, html


def _opening(rows: Sequence[CellRow], command: str) -> list[Block]:
    sizes = ", ".join(
        f"{task} {count(row.num_examples, 'example')} ({count(row.units, 'independent unit')})"
        for task, row in {row.task: row for row in rows}.items()
    )
    seeds = sorted({row.seed for row in rows})
    fractions = sorted({float(f"{row.cache_fraction:.3g}") for row in rows})
    clocks = {
        "virtual": "simulated (clock `virtual`): arrivals by bytes over the link, compute by recorded costs, so that "
        "the same config gives the same rows",
        "real": "measured (clock `real`)",
    }
    times = "; ".join(clocks.get(clock, clock) for clock in sorted({row.clock for row in rows}))
    links = ", ".join(f"`{link}`" for link in sorted({row.link for row in rows}))
    return [
        Code(command),
        Paragraph(
            f"{len(rows)} cells of {sizes}. Policies {_names(row.policy for row in rows)}; schedulers "
            f"{_names(row.scheduler for row in rows)}; losses {_names(row.losses for row in rows)}; "
            f"cache fractions {', '.join(f'{fraction:g}' for fraction in fractions)} (slots / experts); batches of "
            f"{', '.join(str(size) for size in sorted({row.batch_size for row in rows}))}"
            f"{_blocks(rows)}; "
            f"seeds {', '.join(map(str, seeds))}. Device {_names(row.device for row in rows)}. Link {links}. Times are "
            f"{times}."
        ),
    ]


def _blocks(rows: Sequence[CellRow]) -> str:
    sizes = block_sizes(rows)
    return "" if sizes == [1] else f", in blocks of {', '.join(map(str, sizes))} (M)"


def _without_answers(rows: Sequence[CellRow]) -> list[Block]:
    """What a reader must know of tasks without public answers."""
    tasks = ordered(row.task for row in rows if not row.scored)
    if not tasks:
        return []
    return [
        Paragraph(
            f"The answers of {', '.join(tasks)} in this split are not public: nothing is said of accuracy there. The "
            "files that the benchmark's server takes are in `submissions/`."
        )
    ]


def _list(names: Iterable[str]) -> str:
    return ", ".join(ordered(names))


def _versions(folder: Path) -> list[Block]:
    """What a reader must know if the rows were not all measured by one version."""
    lines = version_changes(read_json(folder / ENVIRONMENT))
    return [Paragraph(f"Not all rows were measured by one version and device: {line}.") for line in lines]


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in ordered(names))


def _adjustments(rows: Sequence[CellRow]) -> str:
    lossy = sum(not row.lossless for row in rows)
    text = (
        f"The 95% intervals are each cell's own. They are not adjusted for the {count(len(rows), 'cell')} shown: about "
        "one interval in twenty may miss the truth by chance. They count independent units (`units`), not examples."
    )
    if lossy:
        text += (
            f" The p-values behind what the findings claim are adjusted for all {count(lossy, 'cell')} that accept "
            "losses (Holm); in `results.csv`, `p_value`, `equivalence_p` and `mcnemar_p` are not."
        )
    return text


def _keys(rows: Sequence[CellRow]) -> tuple[dict[str, Any], list[str]]:
    """Keys that have one value in all cells, and those that vary and that no main column shows."""
    columns = {"cell_id", "task", "policy", "scheduler", "miss_policy", "cache_fraction", "hit_rate", "accuracy"}
    columns |= {"predictions_sha256", "arrays_sha256", *(["batches_per_block"] if len(block_sizes(rows)) > 1 else [])}
    columns |= {"accuracy_ci_low", "accuracy_ci_high", "accuracy_delta", "flips", "bit_identical", "tokens_per_second"}
    values = {f.name: {getattr(row, f.name) for row in rows} for f in dataclasses.fields(CellRow)}
    constant = {key: next(iter(same)) for key, same in values.items() if len(same) == 1 and key not in columns}
    return constant, [key for key in values if key not in columns and key not in constant]


def _grid(rows: Sequence[CellRow], keys: Sequence[str]) -> Grid:
    columns = main_columns(rows)
    more = [[getattr(row, key) for key in keys] for row in rows]
    texts = [[c.text(row) for c in columns] + [_text(v) for v in extra] for row, extra in zip(rows, more, strict=True)]
    return Grid(
        [column.title for column in columns] + list(keys),
        texts,
        [column.numeric for column in columns] + [not isinstance(getattr(rows[0], key), str) for key in keys],
        [[c.value(row) for c in columns] + extra for row, extra in zip(rows, more, strict=True)],
    )


def _text(value: Any) -> str:
    if value is None:
        return MISSING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _json(path: Path) -> str:
    return json.dumps(read_json(path), indent=2)
