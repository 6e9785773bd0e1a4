"""Our models against committed arrays of transformers' own (tests/goldens)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from model_parity import batches, check_forward, check_positions, check_session

from expertflow_jax.checkpoints import load_model as load_module
from expertflow_jax.inference.loading import load_model

GOLDENS = Path(__file__).parents[1] / "goldens" / "models"
CASES = sorted(path.name for path in GOLDENS.iterdir())
BATCHES = [(case, batch) for case in CASES for batch in sorted(batches(GOLDENS / case / "reference.npz"))]


def test_there_are_goldens():
    assert len(CASES) >= 3


@pytest.mark.parametrize(("case", "batch"), BATCHES)
def test_positions(case, batch):
    check_positions(load_module(GOLDENS / case), batches(GOLDENS / case / "reference.npz")[batch])


@pytest.mark.parametrize(("case", "batch"), BATCHES)
def test_fused_forward(case, batch):
    check_forward(load_module(GOLDENS / case), batches(GOLDENS / case / "reference.npz")[batch])


@pytest.mark.parametrize(("case", "batch"), BATCHES)
def test_session_with_a_kv_cache(case, batch):
    check_session(load_model(str(GOLDENS / case)), batches(GOLDENS / case / "reference.npz")[batch])
