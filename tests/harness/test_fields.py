"""The table of result keys: rows have its keys and types, its page is current, and what cannot be is refused."""

import dataclasses
from pathlib import Path

import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.harness.fields import FIELDS, checked, keys_of
from expertflow_jax.harness.results_page import results_page
from expertflow_jax.harness.rows import CellRow, Measured
from expertflow_jax.studies.throughput.results import Row

PAGE = Path(__file__).parents[2] / "docs" / "results.md"


def test_the_page_is_that_of_the_table():
    assert PAGE.read_text() == results_page()


@pytest.mark.parametrize("kind", [CellRow, Row])
def test_rows_have_the_keys_and_types_of_the_table(kind: type[Measured]):
    annotations = {field.name: field.type for field in dataclasses.fields(kind)}
    assert set(annotations) == set(keys_of(kind.command))
    for name, annotation in annotations.items():
        assert annotation in (FIELDS[name].kind, FIELDS[name].kind | None), name


def test_what_every_command_measures_is_in_both_rows():
    common = {field.name for field in dataclasses.fields(Measured)}
    assert common <= set(keys_of("study")) & set(keys_of("throughput"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"hit_rate": 1.5}, "hit_rate is 1.5, outside"),
        ({"share": -0.1}, "share is -0.1, outside"),
        ({"rounds": float("nan")}, "rounds is nan, want a finite number"),
        ({"kind": ""}, "kind is '', want text"),
        ({"num_layers": 2.5}, "num_layers is 2.5, want a whole number"),
        ({"perplexity": 1.0}, "unknown key 'perplexity'"),
    ],
)
def test_a_row_that_cannot_be_is_refused(row, words):
    with pytest.raises(InputError, match=words):
        checked("scale", row)
