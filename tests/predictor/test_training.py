"""Training: resumes to the very same weights, learns what can be learnt, and refuses what does not fit."""

import dataclasses

import numpy as np
import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.predictor import report
from expertflow_jax.predictor.metrics import step_reliability
from expertflow_jax.predictor.model import PredictorConfig
from expertflow_jax.predictor.storage import flatten_parameters
from expertflow_jax.predictor.training import TrainingConfig, predict, train_predictor

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
    found = step_reliability(held_out.trace, predict(predictor, held_out), batch_size=2)
    for phase in ("prompt", "decode"):
        assert found[phase]["calibration_error"] < 0.06
        assert sum(row["count"] for row in found[phase]["bins"]) % (3 * 12) == 0


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
    full, _ = predictor.prefill(x, np.full(3, x.shape[1]))
    probs, cache = predictor.prefill(x[:, :8], prompts)
    for row, length in enumerate(prompts):
        np.testing.assert_allclose(probs[row, :length], full[row, :length], atol=1e-5)
    for step in range(steps):
        place = np.minimum(prompts + step, x.shape[1] - 1)
        probs, cache = predictor.decode(x[np.arange(3), place][:, None], cache)
        np.testing.assert_allclose(probs[:, 0], full[np.arange(3), place], atol=1e-5)
    assert cache.lengths.tolist() == (prompts + steps).tolist()


def test_regrouped_caches_forecast_as_before(learnt):
    predictor, _, held_out = learnt
    x = held_out.embeddings[:4].astype(np.float32)
    lengths = np.array([5, 6, 4, 3])
    _, cache = predictor.prefill(x[:, :8], lengths)
    _, left = predictor.prefill(x[:2, :8], lengths[:2])
    _, right = predictor.prefill(x[2:, :8], lengths[2:])
    joined = type(cache).concatenate([left, right]).select([3, 0])
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
