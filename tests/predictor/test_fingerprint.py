"""One checkpoint has one fingerprint however it is loaded; other weights or another config have another."""

import dataclasses

import jax.numpy as jnp
import pytest

from expertflow_jax import checkpoints
from expertflow_jax.routing.fingerprint import fingerprint_of


def test_loads_of_one_checkpoint_agree(model_dir):
    whole = checkpoints.load_model(model_dir, jnp.float32)
    expected = fingerprint_of(whole.config, whole)
    for dtype in (None, jnp.float32, jnp.bfloat16):
        config, dense, _ = checkpoints.load_dense_and_experts(model_dir, dtype)
        assert fingerprint_of(config, dense) == expected


def test_another_seed_is_another_model(model_dir, make_model, tmp_path):
    one, other = (
        checkpoints.load_dense_and_experts(path)[:2] for path in (model_dir, make_model(tmp_path / "other", seed=1))
    )
    assert fingerprint_of(*one) != fingerprint_of(*other)


@pytest.mark.parametrize("part", ["router", "embedding", "config"])
def test_what_decides_routing_is_in_it(model_dir, part):
    config, module, _ = checkpoints.load_dense_and_experts(model_dir)
    before = fingerprint_of(config, module)
    if part == "router":
        module.layers[1].router.kernel[...] = module.layers[1].router.kernel[...].at[0, 0].add(1.0)
    elif part == "embedding":
        module.embed_tokens.embedding[...] = module.embed_tokens.embedding[...].at[5, 5].add(1.0)
    else:
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, rope_theta=5e5))
    assert fingerprint_of(config, module) != before
