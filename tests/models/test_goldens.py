"""Our models against committed arrays of transformers' own (tests/goldens)."""

import functools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from model_parity import batches, check_forward, check_positions, check_session

from expertflow_jax.checkpoints import load_model as load_module
from expertflow_jax.inference.loading import LoadedModel, load_model
from expertflow_jax.models.causal_lm import CausalLM

GOLDENS = Path(__file__).parents[1] / "goldens" / "models"
CASES = sorted(path.name for path in GOLDENS.iterdir())
BATCHES = [(case, batch) for case in CASES for batch in sorted(batches(GOLDENS / case / "reference.npz"))]


@functools.cache
def module(case: str) -> CausalLM:
    return load_module(GOLDENS / case)


@functools.cache
def served(case: str) -> LoadedModel:
    return load_model(str(GOLDENS / case))


def test_there_are_goldens():
    assert len(CASES) >= 3


@pytest.mark.parametrize(("case", "batch"), BATCHES)
def test_positions(case, batch):
    check_positions(module(case), batches(GOLDENS / case / "reference.npz")[batch])


# Models with two batches have images and ragged lengths in the second.
SOME_BATCHES = [pytest.param(*pair, marks=() if pair[1] == "ragged" else pytest.mark.slow) for pair in BATCHES]
VARIATIONS = ("dense_layers", "no_merge")  # of Qwen3-VL, whose other model stays in the default suite
SOME_SESSIONS = [
    pytest.param(*pair, marks=() if pair[1] == "ragged" and pair[0] not in VARIATIONS else pytest.mark.slow)
    for pair in BATCHES
]


@pytest.mark.parametrize(("case", "batch"), SOME_BATCHES)
def test_fused_forward(case, batch):
    check_forward(module(case), batches(GOLDENS / case / "reference.npz")[batch])


@pytest.mark.parametrize(("case", "batch"), SOME_SESSIONS)
def test_session_with_a_kv_cache(case, batch):
    check_session(served(case), batches(GOLDENS / case / "reference.npz")[batch])
