"""A report's tables as LaTeX and CSV."""

import csv

from expertflow_jax.harness.document import Grid, Heading, Paragraph
from expertflow_jax.harness.paper import to_csv, to_latex, write_tables

GRID = Grid(["policy", "speed_up, %"], [["`cache_moe`", "**1.2** & 3"], ["a|b<c", "-"]], [False, True])


def test_latex_escapes_and_aligns():
    text = to_latex(GRID, "Is it 100% faster?")
    assert "\\begin{tabular}{lr}" in text
    assert "\\caption{Is it 100\\% faster?}" in text
    assert "policy & speed\\_up, \\% \\\\" in text
    assert "\\texttt{cache\\_moe} & \\textbf{1.2} \\& 3 \\\\" in text
    assert "a|b\\textless{}c & - \\\\" in text
    assert text.count("\\begin{") == text.count("\\end{") == 2


def test_a_table_longer_than_a_page_breaks():
    text = to_latex(Grid(["n"], [[str(n)] for n in range(60)], [True]), "long")
    assert "\\begin{longtable}{r}" in text
    assert text.count("\\endhead") == 1
    assert text.count(" \\\\\n") == 62  # with caption and titles


def test_csv_reads_back_without_marks():
    assert list(csv.reader(to_csv(GRID).splitlines())) == [
        ["policy", "speed_up, %"],
        ["cache_moe", "1.2 & 3"],
        ["a|b<c", "-"],
    ]


def test_each_table_has_its_files_and_old_ones_go(tmp_path):
    write_tables([Heading(2, "One"), GRID, Heading(3, "Two: b"), Paragraph("x"), GRID], tmp_path)
    names = ["01_one.csv", "01_one.tex", "02_two-b.csv", "02_two-b.tex"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    write_tables([Heading(2, "One"), GRID], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names[:2]
