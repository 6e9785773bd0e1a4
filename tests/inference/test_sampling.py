"""Samples follow seed, prompt and step; numbers that cannot be meant are refused; broken logits are an error."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scripted_model import byte_level_ids, write_byte_level_tokenizer, write_scripted_model

from expertflow_jax import InputError, OffloadedModel
from expertflow_jax.checkpoints import load_dense_and_experts
from expertflow_jax.inference.arguments import real_number
from expertflow_jax.inference.sampling import Sampler
from expertflow_jax.locate import locate

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sampled")
    write_byte_level_tokenizer(path)
    write_scripted_model(path, byte_level_ids("abcdef"))
    return str(path)


def test_samples_do_not_depend_on_the_batches(folder):
    answers = []
    for batch in (3, 1):
        with OffloadedModel.from_pretrained(folder, max_batch_size=batch, max_tokens=32) as model:
            answers.append(model.generate(["x"] * 6, temperature=40.0, seed=3, max_new_tokens=4))
    assert answers[0] == answers[1]
    assert len({tuple(answer.token_ids) for answer in answers[0]}) == 6


def test_the_head_of_a_sequence_alone_in_bfloat16():
    _, module, _ = load_dense_and_experts(locate("digit_scenes_moe"))
    head = nnx.jit(lambda module, x: module.head_stage(x))
    x_BxTxD = jnp.asarray(RNG.normal(size=(2, 1, module.config.text.hidden_size)), jnp.bfloat16)
    assert module.dtype == jnp.bfloat16
    np.testing.assert_array_equal(head(module, x_BxTxD[:1]), head(module, x_BxTxD)[:1])


@pytest.mark.slow
def test_samples_of_a_sequence_alone_in_bfloat16():
    answers = []
    for batch in (2, 1):
        with OffloadedModel.from_pretrained("digit_scenes_moe", max_batch_size=batch, max_tokens=32) as model:
            answers.append(model.generate(["x"] * 2, temperature=1.0, seed=3, max_new_tokens=5))
    assert answers[0] == answers[1]
    assert len(answers[0][1].token_ids) > 1


def test_a_sample_depends_on_its_number_and_step_alone():
    sampler = Sampler(temperature=1.0, seed=2**70)
    logits = RNG.normal(size=(6, 50)).astype(np.float32)
    together = sampler.choose(logits, 4, range(6))
    for row in range(6):
        assert sampler.choose(logits[row : row + 1], 4, [row])[0] == together[row]
    draws = {tuple(sampler.choose(np.zeros((1, 1000), np.float32), step, [n])) for step in range(5) for n in range(5)}
    assert len(draws) > 20


def test_samples_follow_the_probabilities():
    logits = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
    draws = Sampler(temperature=1.0).choose(np.repeat(logits, 4000, axis=0), 0)
    np.testing.assert_allclose(np.bincount(draws) / 4000, [0.5, 0.3, 0.2], atol=0.03)


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), "1", None, True, [1.0], 1j])
def test_what_is_no_number_is_one_line(value):
    with pytest.raises(InputError, match=r"temperature: .* should be 0 or more") as caught:
        real_number("temperature", value, "0 or more")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("temperature", [0, 0.0, 5e-324, 1e-310, 1e-39, 1e-30, np.float32(1e-44)])
def test_the_coldest_temperatures_are_greedy(temperature):
    logits = RNG.normal(size=(5, 30)).astype(np.float32) * 1e4
    np.testing.assert_array_equal(Sampler(temperature=temperature).choose(logits, 0), logits.argmax(axis=1))


@pytest.mark.parametrize(
    "numbers",
    [
        *({"temperature": value} for value in (-1, np.nan, np.inf, -0.5, "1", True, None)),
        *({"top_p": value} for value in (0, -0.1, 1.5, np.nan, "x", True)),
        *({"top_k": value} for value in (-1, 1.5, True, "3", np.nan)),
        *({"seed": value} for value in (-1, 1.5, True, None, "1", np.inf, -(10**6000))),
    ],
)
def test_numbers_that_cannot_be_meant(numbers):
    (name,) = numbers
    with pytest.raises(InputError, match=f"^{name}: ") as caught:
        Sampler(**numbers)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_overflow_are_an_error(tmp_path, temperature):
    write_byte_level_tokenizer(tmp_path)
    write_scripted_model(tmp_path, byte_level_ids("ab"), scale=1e37)
    with OffloadedModel.from_pretrained(str(tmp_path), max_tokens=32) as model:
        with pytest.raises(InputError, match=r"(?i)nan|infinit") as caught:
            model.generate("x", max_new_tokens=4, temperature=temperature)
        assert "\n" not in str(caught.value)
