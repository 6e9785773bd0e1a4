"""Training may begin with a trained model's dense parameters; a model of ours with a shared expert is read back."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import digit_scenes_shared, digit_scenes_wide
from expertflow_jax import checkpoints
from expertflow_jax.errors import InputError
from expertflow_jax.locate import locate
from expertflow_jax.models.qwen3_vl_moe import Qwen3VLMoe
from expertflow_jax.training.course import architecture
from expertflow_jax.training.warm_start import with_dense_parameters

NEW = {"router", "experts", "shared_expert", "shared_expert_gate"}


def flat(state):
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


SHARED, WIDE = digit_scenes_shared.get_config(), digit_scenes_wide.get_config()


@pytest.mark.parametrize("config", [pytest.param(SHARED, marks=pytest.mark.slow), WIDE])
def test_all_but_routers_and_experts_begin_as_in_the_trained_model(config):
    module = Qwen3VLMoe(architecture(config), rngs=nnx.Rngs(config.seed))
    fresh = nnx.state(module)
    begun = flat(with_dense_parameters(fresh, config.warm_start))
    _, trained, _ = checkpoints.load_dense_and_experts(locate(config.warm_start), jnp.float32)
    trained, fresh = flat(nnx.state(trained)), flat(fresh)
    assert begun.keys() == fresh.keys()
    for name, array in begun.items():
        expected = fresh if NEW & set(name.split(".")) else trained
        np.testing.assert_array_equal(array, expected[name])


def test_a_model_of_other_widths_is_refused():
    config = digit_scenes_wide.get_config()
    config.text.head_dim = 16
    config.text.mrope_section = (4, 2, 2)
    module = Qwen3VLMoe(architecture(config), rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="name a model of the same widths"):
        with_dense_parameters(nnx.state(module), config.warm_start)


def test_a_shared_expert_comes_back_from_the_export(tmp_path):
    config = digit_scenes_shared.get_config()
    config.text.num_hidden_layers = 1
    model = architecture(config)
    module = Qwen3VLMoe(model, rngs=nnx.Rngs(3))
    checkpoints.save_hf(tmp_path, model, module, jnp.float32)
    read = checkpoints.load_model(tmp_path)
    assert dataclasses.asdict(read.config) == dataclasses.asdict(model)
    written = flat(nnx.state(module))
    for name, array in flat(nnx.state(read)).items():
        np.testing.assert_array_equal(array, written[name])
