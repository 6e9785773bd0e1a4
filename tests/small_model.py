"""A randomly initialised Qwen3-VL-MoE of a few thousand parameters, served as a checkpoint would be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from random_module import random_module

from expertflow_jax.inference.stages import Stages
from expertflow_jax.models.decoder_config import DecoderConfig
from expertflow_jax.models.qwen3_vl_moe import Qwen3VLMoe, Qwen3VLMoeConfig, VisionConfig
from expertflow_jax.offload.store import ExpertStore
from expertflow_jax.processing.batching import Prompt

IMAGE, VIDEO, START, END = 1, 2, 3, 4


def small_config(**text) -> Qwen3VLMoeConfig:
    """Three layers of eight experts, top 2; keywords change the text config."""
    values = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 12,
        "intermediate_size": 24,
        "qk_norm": "head",
        "mrope_section": (2, 1, 1),
        "rope_theta": 10_000.0,
        "max_position_embeddings": 128,
    }
    vision = VisionConfig(
        depth=2,
        hidden_size=16,
        num_heads=2,
        intermediate_size=24,
        out_hidden_size=values["hidden_size"],
        patch_size=4,
        temporal_patch_size=1,
        num_position_embeddings=16,
        deepstack_visual_indexes=(0,),
    )
    return Qwen3VLMoeConfig(
        DecoderConfig(**(values | text)),
        vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )


@functools.cache
def served(config: Qwen3VLMoeConfig, seed: int = 0) -> tuple[Stages, ExpertStore]:
    """Compiled stages and a full host tier of a random model; the same for all tests, which change neither."""
    module = random_module(Qwen3VLMoe, config, seed=seed)
    text = config.text
    layers = [i for i in range(text.num_hidden_layers) if text.is_moe(i)]
    layout = text.expert_layout(jnp.float32)
    store = ExpertStore(layout, len(layers), text.num_experts)
    for number, layer in enumerate(layers):
        gate_up, down = np.asarray(module.experts[layer].gate_up[...]), np.asarray(module.experts[layer].down[...])
        for expert in range(text.num_experts):
            store.put(number, expert, gate_up[expert], down[expert])
    dense = nnx.eval_shape(lambda: Qwen3VLMoe(config, rngs=nnx.Rngs(0), with_experts=False))
    nnx.update(dense, jax.tree.map(lambda x: x, _without_experts(module)))
    return Stages(dense), store


def _without_experts(module: Qwen3VLMoe) -> nnx.State:
    module.experts = nnx.List([None for _ in module.experts])
    return nnx.state(module)


def random_prompts(config: Qwen3VLMoeConfig, count: int, rng: np.random.Generator) -> list[Prompt]:
    """Ragged prompts, every other with an image of 4x4 patches (four image tokens). As many have always the same shape
    together, so that tests share programs."""
    prompts = []
    for number in range(count):
        words = rng.integers(5, config.text.vocab_size, size=rng.integers(3, 9)).astype(np.int32)
        if number % 2:
            ids = np.concatenate([words, [START], [IMAGE] * 4, [END]]).astype(np.int32)
            pixels = rng.normal(size=(16, config.vision.patch_dim)).astype(np.float32)
            prompts.append(Prompt(ids, pixels, np.array([[1, 4, 4]])))
        else:
            prompts.append(Prompt(words))
    return prompts
