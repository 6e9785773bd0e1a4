"""Predictors on disk: a round trip, and one clear refusal of everything that is not what it should be."""

import json

import numpy as np
import pytest
from flax import nnx
from random_module import random_module

from expertflow_jax.errors import InputError
from expertflow_jax.predictor import Predictor, PredictorConfig, RoutingPathPredictor, load_predictor
from expertflow_jax.predictor.storage import CONFIG, WEIGHTS, save_predictor

SHAPE = PredictorConfig(10, 3, 12, 2, width=16, depth=1, heads=2, hidden=32)


@pytest.fixture
def saved(tmp_path):
    module = random_module(RoutingPathPredictor, SHAPE)
    predictor = Predictor(
        SHAPE,
        nnx.state(module),
        scale=np.array([[1.0, 2.0, 0.5], [0.7, 1.0, 3.0]]),
        bias=np.array([[0.0, -1.0, 1.0], [0.5, 0.0, -2.0]]),
        model_fingerprint="a" * 32,
        provenance={"seed": 3},
        metrics={"held_out": 1.0},
    )
    save_predictor(predictor, tmp_path)
    return predictor, tmp_path


def test_round_trip(saved):
    predictor, folder = saved
    loaded = load_predictor(folder, expect_fingerprint="a" * 32)
    x = np.random.default_rng(0).normal(size=(2, 5, 10)).astype(np.float32)
    lengths = np.array([5, 3])
    (found, cache), (expected, expected_cache) = loaded.prefill(x, lengths), predictor.prefill(x, lengths)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(cache.following, expected_cache.following)
    assert loaded.provenance == {"seed": 3}
    assert loaded.metrics == {"held_out": 1.0}
    assert loaded.nbytes == predictor.nbytes
    assert sorted(path.name for path in folder.iterdir()) == sorted([WEIGHTS, CONFIG])


def test_another_models_predictor_is_refused(saved):
    with pytest.raises(InputError, match="trained for model aaaa"):
        load_predictor(saved[1], expect_fingerprint="b" * 32)


def break_config(change):
    def apply(folder):
        description = json.loads((folder / CONFIG).read_text())
        change(description)
        (folder / CONFIG).write_text(json.dumps(description))

    return apply


DAMAGES = {
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "cannot be read"),
    "no config": (lambda folder: (folder / CONFIG).unlink(), "cannot be read"),
    "truncated weights": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10]),
        "truncated",
    ),
    "truncated config": (
        lambda folder: (folder / CONFIG).write_text((folder / CONFIG).read_text()[:40]),
        "malformed JSON",
    ),
    "another file": (break_config(lambda d: d.update(format="something")), "not a expertflow_jax.predictor"),
    "unknown key": (break_config(lambda d: d["config"].update(layers=3)), "unknown keys layers"),
    "impossible value": (break_config(lambda d: d["config"].update(width=-4)), "predictor.width"),
    "other shape": (break_config(lambda d: d["config"].update(hidden=64)), "expected"),
    "other layers": (break_config(lambda d: d["config"].update(moe_layers=4)), "malformed"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_predictors_are_refused_in_one_line(saved, name):
    damage, message = DAMAGES[name]
    damage(saved[1])
    with pytest.raises(InputError, match=message) as caught:
        load_predictor(saved[1])
    assert str(saved[1]) in str(caught.value)
