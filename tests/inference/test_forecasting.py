"""Horizons look one token and one batch further than the step at hand."""

import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

sys.path.insert(0, str(Path(__file__).parents[1]))
from random_module import random_module
from small_model import random_prompts, served, small_config

from expertflow_jax.inference.forecasting import SOON, NoForecast
from expertflow_jax.inference.generation import generate_batch
from expertflow_jax.inference.members import Member
from expertflow_jax.inference.predicted import PredictedForecast
from expertflow_jax.inference.scoring import score_batch
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.offload.clock import VirtualClock
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.misses import make_miss_policy
from expertflow_jax.predictor import Predictor, PredictorConfig, RoutingPathPredictor
from expertflow_jax.predictor.forecast import combine_sequences, step_forecast
from expertflow_jax.processing.batching import pad_prompts
from expertflow_jax.simulation.costs import ComputeCosts, Line

COSTS = ComputeCosts(*[Line(1e-4, 1e-6)] * 2, 1e-6, *[Line(1e-4, 1e-6)] * 3)
CONFIG = small_config()
STAGES, STORE = served(CONFIG)


@pytest.fixture(scope="module")
def predictor():
    text = CONFIG.text
    shape = PredictorConfig(
        text.hidden_size, len(text.moe_layers), text.num_experts, text.num_experts_per_tok,
        width=16, depth=1, heads=2, hidden=16,
    )  # fmt: skip
    return Predictor(shape, nnx.state(random_module(RoutingPathPredictor, shape, seed=1)))


@pytest.fixture
def session():
    with ExpertCacheEngine(STORE, 6, "expertflow", "emulated(0.001,5)", VirtualClock()) as engine:
        engine.warm_up()
        yield InferenceSession(STAGES, engine, make_miss_policy("wait"), COSTS)


def prompts(count=3):
    return random_prompts(CONFIG, count, np.random.default_rng(2))


def test_rows_are_the_step_the_next_tokens_and_the_queue(predictor, session):
    batch = pad_prompts(CONFIG, prompts())
    x, _ = session.embed(batch)
    probs, cache = predictor.prefill(x, batch.lengths)
    now, following = step_forecast(probs, batch.lengths), combine_sequences(cache.following)
    queued = np.full(now.shape, 0.25, np.float32)
    for known, ends, expected in [
        (None, False, [now, following]),
        (None, True, [now]),
        (queued, False, [now, following, SOON * queued]),
        (queued, True, [now, queued]),
    ]:
        forecaster = PredictedForecast(predictor, session.engine.clock, COSTS)
        forecaster.expect([] if known is None else [known])
        horizon = forecaster.horizon([Member.prefill(batch, session.start(batch, 4), x, None)], [ends])
        np.testing.assert_allclose(horizon, np.stack(expected), atol=1e-6)


@pytest.mark.parametrize("behind_encoder", [pytest.param(False, marks=pytest.mark.slow), True])
def test_tokens_summed_on_the_device_give_the_same_float32(predictor, behind_encoder):
    random = np.random.default_rng(3)
    x = random.normal(size=(3, 300, CONFIG.text.hidden_size)).astype(np.float32)  # [B, T, D], two chunks
    lengths = np.array([300, 0, 41], np.int32)
    visits = random.random((3, 300, len(CONFIG.text.moe_layers))) < 0.5 if behind_encoder else None  # [B, T, L]
    probs, cache = predictor.prefill(x, lengths)
    use, reduced = predictor.forecast(x, lengths, visits=visits)
    weighed = probs if visits is None else probs * visits[..., None]
    assert (combine_sequences(use) == step_forecast(weighed, lengths)).all()
    assert (cache.following == reduced.following).all()
    probs, _ = predictor.decode(x[:, :1], cache)
    use, _ = predictor.forecast(x[:, :1], None, reduced)
    active = np.array([True, False, True])
    assert (combine_sequences(use[active]) == step_forecast(probs, active.astype(np.int32))).all()


def test_sequences_that_have_stopped_want_nothing_next(predictor, session):
    batch = pad_prompts(CONFIG, prompts())
    x, _ = session.embed(batch)
    forecaster = PredictedForecast(predictor, session.engine.clock, COSTS)
    sequences = session.start(batch, 4)
    forecaster.horizon([Member.prefill(batch, sequences, x, None)], [False])
    active = np.array([False, True, False])
    token = STAGES.embed(np.full((3, 1), 5, np.int32), None, None)
    horizon = forecaster.horizon([Member.decode(sequences, token, active)], [False])
    _, cache = predictor.prefill(x, batch.lengths)
    probs, cache = predictor.decode(token, cache)
    np.testing.assert_allclose(horizon, [probs[1, 0], cache.following[1]], atol=1e-6)


class Spy(NoForecast):
    def __init__(self):
        self.ends = []

    def horizon(self, members, ends):
        self.ends += ends


@pytest.mark.parametrize("limits", [[1, 1, 1], [3, 1, 2]])
def test_the_last_step_that_the_limits_allow_is_told(session, limits):
    spy = Spy()
    generate_batch(session, prompts(), spy, max_new_tokens=limits, stop_ids=())
    assert spy.ends == [False] * (max(limits) - 1) + [True]


def test_a_batch_that_is_only_scored_ends_with_its_prefill(session):
    spy = Spy()
    score_batch(session, prompts(), spy)
    assert spy.ends == [True]
