"""A tiny untrained model in the Hugging Face layout, and traces whose routing can be learnt from the token."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from random_module import random_module

from configs import digit_scenes_moe
from expertflow_jax import checkpoints
from expertflow_jax.models.qwen3_vl_moe import Qwen3VLMoe
from expertflow_jax.routing.trace import RoutingTrace
from expertflow_jax.routing.trace_set import TraceSet
from expertflow_jax.tasks.digit_scenes.processor_files import PROCESSOR
from expertflow_jax.training.course import architecture

LAYERS, EXPERTS, TOP_K, WIDTH = 3, 12, 2, 10


def write_model(folder: Path, seed: int = 0) -> Path:
    """A model for digit scenes: two MoE layers of eight experts, random weights."""
    config = digit_scenes_moe.get_config()
    config.text.update(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=8,
        moe_intermediate_size=8, mrope_section=(2, 1, 1),
    )  # fmt: skip
    config.vision.update(depth=1, hidden_size=16, num_heads=2, intermediate_size=16)
    model = architecture(config)
    checkpoints.save_hf(folder, model, random_module(Qwen3VLMoe, model, seed=seed), jnp.dtype("float32"))
    PROCESSOR.write(folder)
    return folder


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


def learnable_traces(count: int, seed: int, fingerprint: str = "a" * 32) -> TraceSet:
    """A token's experts at a layer follow from its kind (all but the last layer) or the kind before it (the last)."""
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(99)
    kinds = 8
    table = np.stack(
        [[shared.choice(EXPERTS, TOP_K, replace=False) for _ in range(kinds)] for _ in range(LAYERS)], axis=1
    )  # [kinds, L, K]
    look = shared.normal(size=(kinds, WIDTH)).astype(np.float32)
    length = 12
    kind = rng.integers(kinds, size=(count, length))
    before = np.concatenate([np.zeros((count, 1), int), kind[:, :-1]], axis=1)
    experts = table[kind]
    experts[:, :, -1] = table[before][:, :, -1]
    lengths = rng.integers(6, length + 1, size=count)
    padding = np.arange(length) >= lengths[:, None]
    experts[padding] = -1
    guess = np.argsort(rng.random((count, length, LAYERS, EXPERTS)), axis=-1)[..., :4]
    guess[:, :, 0] = -1
    embeddings = np.where(padding[..., None], 0, look[kind]).astype(np.float16)
    trace = RoutingTrace(
        experts,
        EXPERTS,
        lengths=lengths,
        prompt_lengths=lengths - 2,
        speculative=guess,
        model_fingerprint=fingerprint,
    )
    return TraceSet(embeddings, trace)


@pytest.fixture(scope="session")
def make_traces():
    """Function (count, seed, fingerprint) -> TraceSet, see `learnable_traces`."""
    return learnable_traces


@pytest.fixture(scope="session")
def make_model():
    """Function (folder, seed) -> folder, see `write_model`."""
    return write_model
