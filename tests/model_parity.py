"""Compares our model with arrays that transformers computed from the same checkpoint (see tests/parity/reference.py).

The fused forward, then the staged inference session with its KV cache, token by token. Axes: B sequences, T tokens,
L MoE layers, E experts, K top-k, G decode steps, V vocabulary.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax import nnx
from scipy.special import softmax

from expertflow_jax.checkpoints import load_model as load_module
from expertflow_jax.inference.loading import LoadedModel, load_model
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.models.causal_lm import CausalLM, ForwardOutput
from expertflow_jax.offload.clock import VirtualClock
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.misses import make_miss_policy
from expertflow_jax.processing.batching import Prompt, PromptBatch, pad_prompts
from expertflow_jax.simulation.costs import ComputeCosts, Line

TOLERANCE = 1e-4  # of a logit difference to the logits, in the Euclidean norm; all in float32
COSTS = ComputeCosts(Line(1e-4, 1e-6), Line(1e-5, 1e-7), 1e-6, Line(1e-5, 0), Line(1e-4, 1e-6), Line(1e-4, 1e-6))

Arrays = Mapping[str, np.ndarray]


def batches(file: Path) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each batch of a reference file."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(file) as arrays:
        for name in arrays.files:
            batch, array = name.split("/")
            found.setdefault(batch, {})[array] = arrays[name]
    return found


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """|found - expected| / |expected|."""
    wide = expected.astype(np.float64)
    return float(np.linalg.norm(found - wide) / np.linalg.norm(wide))


def padded(model: LoadedModel | CausalLM, arrays: Arrays) -> PromptBatch:
    """The batch as our runtime lays it out, each image with its prompt."""
    config = model.config
    if "encoder_lengths" in arrays:
        rows = zip(arrays["input_ids"], arrays["lengths"], arrays["encoder_lengths"], strict=True)
        return pad_prompts(config, [Prompt(ids[:n].astype(np.int32), encoder_tokens=int(own)) for ids, n, own in rows])
    grids = pixels = np.zeros((0, 3))
    if config.vision is not None:
        given = [arrays.get(name) for name in ("pixel_values", "image_grid_thw", "pixel_mask")]
        pixels, grids = config.vision.pack(*given)
    prompts, image, patch = [], 0, 0
    for row, length in zip(arrays["input_ids"], arrays["lengths"], strict=True):
        ids = row[:length].astype(np.int32)
        left = 0 if config.vision is None else int((ids == config.image_token_id).sum())
        first, first_patch = image, patch
        while left > 0:
            left -= config.vision.image_tokens(grids[image])
            image, patch = image + 1, patch + int(grids[image].prod())
        prompts.append(Prompt(ids, pixels[first_patch:patch], grids[first:image]) if image > first else Prompt(ids))
    return pad_prompts(config, prompts)


def check_positions(model: LoadedModel | CausalLM, arrays: Arrays) -> None:
    """M-RoPE positions of the prompts and where decoding goes on; an encoder-decoder has neither."""
    if "encoder_lengths" in arrays:
        return
    batch = padded(model, arrays)
    width = arrays["input_ids"].shape[1]
    np.testing.assert_array_equal(batch.positions[:, :, :width], arrays["positions"])
    np.testing.assert_array_equal(batch.next_position, arrays["next_position"])


@nnx.jit
def _fused(module: CausalLM, batch: dict) -> ForwardOutput:
    embeds = deepstack = None
    if batch["pixels"] is not None:
        embeds, deepstack = module.vision_stage(batch["pixels"], batch["where"])
    return module.forward(batch["ids"], batch["positions"], batch["lengths"], embeds, deepstack, batch["embed_index"])


def fused_forward(module: CausalLM, batch: PromptBatch) -> ForwardOutput:
    """The whole model as one program."""
    arrays = {
        "pixels": batch.pixel_values,
        "where": batch.vision_positions,
        "ids": batch.input_ids,
        "positions": batch.positions,
        "lengths": batch.lengths,
        "embed_index": batch.embed_index,
    }
    return _fused(module, arrays)


def check_forward(module: CausalLM, arrays: Arrays) -> float:
    """The fused forward: same experts of every token, logits and router logits within TOLERANCE. Returns the error."""
    batch = padded(module, arrays)
    out = fused_forward(module, batch)
    width = arrays["input_ids"].shape[1]
    valid = np.arange(width) < arrays["lengths"][:, None]
    by_token = np.asarray(out.expert_ids).transpose(0, 2, 1, 3)[:, :width]
    np.testing.assert_array_equal(by_token[valid], arrays["expert_ids"].transpose(0, 2, 1, 3)[valid])
    routed = arrays["expert_ids"].transpose(0, 2, 1, 3)[..., 0] >= 0
    routed = routed & valid[..., None]
    expected = softmax(arrays["router_logits"].transpose(0, 2, 1, 3)[routed], axis=-1)
    probs = np.asarray(out.router_probs).transpose(0, 2, 1, 3)[:, :width][routed]
    assert relative_error(probs, expected) <= TOLERANCE
    answered = valid & (np.arange(width) >= arrays.get("encoder_lengths", np.zeros(len(valid)))[:, None])
    error = relative_error(np.asarray(out.logits)[:, :width][answered], arrays["logits"][answered])
    assert error <= TOLERANCE
    return error


def check_session(model: LoadedModel, arrays: Arrays) -> float:
    """Prefill and greedy decoding through the staged session with half of the experts cached: same experts of every
    token, same greedy tokens, logits within TOLERANCE. Returns the largest error."""
    slots = max(1, model.store.num_layers * model.store.num_experts // 2)
    engine = ExpertCacheEngine(model.store, slots, "on_demand", "emulated(1,5)", VirtualClock())
    session = InferenceSession(model.stages, engine, make_miss_policy("wait"), COSTS)
    session.records = []
    batch = padded(model, arrays)
    size, steps = arrays["tokens"].shape
    x, deepstack = session.embed(batch)
    sequences = session.start(batch, steps)
    hidden = session.prefill(batch, sequences, x, deepstack, None)
    logits = session.last_logits(hidden, batch.lengths)
    active, errors = np.ones(size, bool), []
    for step in range(steps):
        expected = arrays["step_logits"][:, step]
        errors.append(relative_error(logits, expected))
        tokens = logits.argmax(axis=-1)
        np.testing.assert_array_equal(tokens, arrays["tokens"][:, step], err_msg=f"step {step}")
        if step < steps - 1:
            x = session.stages.embed(tokens[:, None].astype(np.int32), None, None)
            logits = session.last_logits(session.decode(sequences, x, active, None), np.ones(size, np.int32))
    prefill, *decoded = [record.expert_ids for record in session.records]
    valid = np.arange(arrays["input_ids"].shape[1]) < arrays["lengths"][:, None]
    by_token = prefill[:, : valid.shape[1]]
    np.testing.assert_array_equal(by_token[valid], arrays["expert_ids"].transpose(0, 2, 1, 3)[valid])
    np.testing.assert_array_equal(np.concatenate(decoded, axis=1).transpose(0, 2, 1, 3), arrays["step_expert_ids"])
    engine.close()
    assert max(errors) <= TOLERANCE
    return max(errors)


def check_checkpoint(directory: Path) -> dict[str, float]:
    """All checks of one checkpoint with a reference.npz beside it; largest error per batch."""
    module, model = load_module(directory), load_model(str(directory))
    errors = {}
    for name, arrays in batches(directory / "reference.npz").items():
        check_positions(module, arrays)
        errors[name] = max(check_forward(module, arrays), check_session(model, arrays))
    return errors
