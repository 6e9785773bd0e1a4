"""Training: resumes to the very same weights, learns what can be learnt, and refuses what does not fit."""

import dataclasses

import numpy as np
import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.predictor import report, runtime
from expertflow_jax.predictor.calibration import expected_calibration_error
from expertflow_jax.predictor.metrics import step_reliability, used_mask
from expertflow_jax.predictor.model import PredictorConfig
from expertflow_jax.predictor.storage import flatten_parameters
from expertflow_jax.predictor.trace_forecasts import following_places, predict
from expertflow_jax.training.predictor import TrainingConfig, train_predictor

SHAPE = PredictorConfig(10, 3, 12, 2, width=16, depth=1, heads=2, hidden=32)


class Killed(Exception):
    pass


def kill_at(step: int):
    def on_step(done: int) -> None:
        if done == step:
            raise Killed

    return on_step


def weights(predictor) -> dict[str, np.ndarray]:
    return flatten_parameters(predictor.parameters)


SHORT = TrainingConfig(steps=8, batch_size=8, checkpoint_every=3, warmup_steps=2, log_every=1)


@pytest.fixture(scope="module")
def whole_run(make_traces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, *train_predictor(make_traces(40, 0), SHAPE, SHORT, folder, show_progress=False)


def test_a_killed_run_resumes_to_the_same_weights(whole_run, make_traces, tmp_path):
    _, whole, summary = whole_run
    traces = make_traces(40, 0)
    with pytest.raises(Killed):
        train_predictor(traces, SHAPE, SHORT, tmp_path, show_progress=False, on_step=kill_at(4))
    resumed, again = train_predictor(traces, SHAPE, SHORT, tmp_path, show_progress=False)
    assert again["loss"] == summary["loss"]
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(value, weights(resumed)[name], err_msg=name)
    np.testing.assert_array_equal(whole.scale, resumed.scale)
    log = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(log) == SHORT.steps  # no step twice, none lost


def test_another_run_in_the_same_workdir_is_refused(whole_run, make_traces):
    folder = whole_run[0]
    other = dataclasses.replace(SHORT, seed=1)
    with pytest.raises(InputError, match="another --workdir"):
        train_predictor(make_traces(40, 0), SHAPE, other, folder, show_progress=False)
    with pytest.raises(InputError, match="traces"):
        train_predictor(make_traces(40, 5), SHAPE, SHORT, folder, show_progress=False)


@pytest.fixture(scope="module")
def learnt(make_traces, tmp_path_factory):
    config = TrainingConfig(steps=400, batch_size=32, checkpoint_every=400, warmup_steps=20, learning_rate=1e-2)
    train = make_traces(400, 1)
    folder = tmp_path_factory.mktemp("learnt")
    predictor, _ = train_predictor(train, SHAPE, config, folder, held_out=make_traces(100, 2), show_progress=False)
    return predictor, train, make_traces(100, 3)


def test_beats_popularity_and_speculation_at_every_number_fetched(learnt):
    predictor, train, held_out = learnt
    found = report.evaluate(predictor, train.trace, {"held_out": held_out}, batch_size=4)["held_out"]
    methods = found["token"]["all"]
    for count in report.fetch_counts(2, 12):
        name = f"recall@{count}"
        mine = methods["predictor"][name]["mean"]
        assert mine > methods["popularity"][name]["mean"] + 0.1
        assert mine > methods["speculative"][name]["mean"] + 0.1
    # The last layer follows from the token before: it takes attention to know it.
    assert methods["predictor"]["recall@2"]["per_layer"][-1] > 0.8
    assert report.summarise({"held_out": found})["held_out"]["token/all"]["predictor"]["recall@2"] > 0.8


def test_forecasts_of_a_step_are_calibrated(learnt):
    predictor, _, held_out = learnt
    found = step_reliability(held_out.trace, predict(predictor, held_out)[0], batch_size=2)
    for phase in ("prompt", "decode"):
        assert found[phase]["calibration_error"] < 0.06
        assert sum(row["count"] for row in found[phase]["bins"]) % (3 * 12) == 0


def test_the_token_after_is_forecast_as_far_as_it_can_be_known(learnt):
    """Of the traces' next token only the last layer follows from what was read; whether there is one is a matter of
    chance, and belongs to the forecast."""
    predictor, train, held_out = learnt
    found = report.evaluate(predictor, train.trace, {"held_out": held_out}, batch_size=4)["held_out"]
    methods = found["token"]["following"]
    assert methods["predictor"]["recall@2"]["per_layer"][-1] > 0.8
    assert methods["persistence"]["recall@2"]["per_layer"][-1] < 0.4
    trace = held_out.trace
    places = following_places(trace)
    last = places == trace.lengths[:, None] - 1
    assert (places[:, 0] == trace.prompt_lengths - 1).all()
    assert last[:, -1].all()
    assert last.sum() == len(trace)
    forecast = predict(predictor, held_out)[1][np.arange(len(trace))[:, None], places]
    used = np.zeros(forecast.shape, bool)
    row, place = np.nonzero(~last)
    used[row, place] = used_mask(trace.experts[row, places[row, place] + 1], trace.num_experts)
    assert expected_calibration_error(forecast, used) < 0.05


def test_without_answers_every_token_is_asked_for_its_next(make_traces):
    trace = dataclasses.replace(make_traces(5, 0).trace, prompt_lengths=None)
    places = following_places(trace)
    assert places[:, 0].tolist() == [0] * 5
    assert (places.max(1) == trace.lengths - 1).all()
    # a repeated place is the end's, and counts once
    assert (np.diff(places, axis=1).clip(0).sum(1) == trace.lengths - 1).all()


def test_a_forecast_never_sees_what_comes_later(learnt):
    predictor, _, held_out = learnt
    x = held_out.embeddings[:4].astype(np.float32)
    changed = x.copy()
    changed[:, 6:] += 1
    lengths = np.full(4, x.shape[1])
    first, second = predictor.prefill(x, lengths)[0], predictor.prefill(changed, lengths)[0]
    np.testing.assert_array_equal(first[:, :6], second[:, :6])
    assert np.abs(first[:, 6:] - second[:, 6:]).max() > 1e-3


def test_prefill_and_decode_with_a_cache_equal_the_full_forward(learnt):
    predictor, _, held_out = learnt
    x = held_out.embeddings[:3].astype(np.float32)
    prompts, steps = np.array([5, 8, 3]), 4
    full, following = predictor.every_token(x)
    probs, cache = predictor.prefill(x[:, :8], prompts)
    np.testing.assert_allclose(cache.following, following[np.arange(3), prompts - 1], atol=1e-5)
    for row, length in enumerate(prompts):
        np.testing.assert_allclose(probs[row, :length], full[row, :length], atol=1e-5)
    for step in range(steps):
        place = np.minimum(prompts + step, x.shape[1] - 1)
        probs, cache = predictor.decode(x[np.arange(3), place][:, None], cache)
        np.testing.assert_allclose(probs[:, 0], full[np.arange(3), place], atol=1e-5)
        np.testing.assert_allclose(cache.following, following[np.arange(3), place], atol=1e-5)
    assert cache.lengths.tolist() == (prompts + steps).tolist()


def test_long_prompts_run_in_chunks_and_forecast_the_same(learnt, monkeypatch):
    predictor, _, held_out = learnt
    x, lengths = held_out.embeddings[:3].astype(np.float32), np.array([3, 12, 7])
    whole, cache = predictor.prefill(x, lengths)
    monkeypatch.setattr(runtime, "CHUNK", 5)
    parts, chunked = predictor.prefill(x, lengths)
    inside = np.arange(12) < lengths[:, None]
    np.testing.assert_allclose(parts[inside], whole[inside], atol=1e-5)
    np.testing.assert_allclose(chunked.following, cache.following, atol=1e-5)


def test_regrouped_caches_forecast_as_before(learnt):
    predictor, _, held_out = learnt
    x = held_out.embeddings[:4].astype(np.float32)
    lengths = np.array([5, 6, 4, 3])
    _, cache = predictor.prefill(x[:, :8], lengths)
    _, left = predictor.prefill(x[:2, :8], lengths[:2])
    _, right = predictor.prefill(x[2:, :8], lengths[2:])
    joined = type(cache).concatenate([left, right]).select([3, 0])
    np.testing.assert_allclose(joined.following, cache.following[[3, 0]], atol=1e-5)
    new = x[:, 9:10]
    expected, _ = predictor.decode(new, cache)
    found, _ = predictor.decode(new[[3, 0]], joined)
    np.testing.assert_allclose(found, expected[[3, 0]], atol=1e-5)


def test_traces_of_another_shape_are_refused(make_traces, tmp_path):
    with pytest.raises(InputError, match="expects"):
        train_predictor(make_traces(8, 0), PredictorConfig(11, 3, 12, 2), TrainingConfig(steps=1), tmp_path)


@pytest.mark.parametrize(("key", "value"), [("steps", 0), ("loss", "hinge"), ("learning_rate", 0.0), ("log_every", 0)])
def test_impossible_training_values_name_their_key(key, value):
    with pytest.raises(InputError, match=f"training.{key}"):
        TrainingConfig(**{key: value})
