"""Every text family through the same door: transformers' greedy tokens and routes, the same bits at every cache size,
budgets without a vision tower, traces for a predictor, and checkpoints that go round."""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from model_parity import TOLERANCE, batches, fused_forward, padded, relative_error
from random_module import random_module

from expertflow_jax import OffloadedModel
from expertflow_jax.checkpoints import load_model, save_hf
from expertflow_jax.checkpoints.families import FAMILIES
from expertflow_jax.checkpoints.load import read_config
from expertflow_jax.errors import InputError
from expertflow_jax.predictor.recording import Recorder
from expertflow_jax.processing.batching import Prompt
from expertflow_jax.tasks.digit_scenes.processor_files import PROCESSOR

GOLDENS = Path(__file__).parent / "goldens" / "models"
FAMILY = {"mixtral_window": "mixtral", "olmoe_clip": "olmoe", "qwen2_moe_window": "qwen2_moe"}
FAMILY |= {"qwen3_moe_stretched": "qwen3_moe", "switch_small_capacity": "switch_transformers"}


def load(case, **options):
    return OffloadedModel.from_pretrained(str(GOLDENS / case), max_batch_size=4, max_tokens=64, **options)


def ragged(case):
    return batches(GOLDENS / case / "reference.npz")["ragged"]


def prompts(arrays):
    """What a model reads, an encoder-decoder's encoder alone."""
    lengths = arrays.get("encoder_lengths", arrays["lengths"])
    return [row[:length].tolist() for row, length in zip(arrays["input_ids"], lengths, strict=True)]


def request(arrays):
    """The batch as arguments of `logits`."""
    rows = prompts(arrays)
    width = max(map(len, rows))
    ids = np.array([row + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": np.arange(width) < [[len(row)] for row in rows], **decoder(arrays)}


def decoder(arrays):
    """What an encoder-decoder's decoder begins with."""
    if "encoder_lengths" not in arrays:
        return {}
    rows = zip(arrays["input_ids"], arrays["encoder_lengths"], arrays["lengths"], strict=True)
    return {"decoder_input_ids": np.stack([row[first:last] for row, first, last in rows])}


def answered(arrays):
    """Of each sequence, the reference's logits at the tokens that have some."""
    first = arrays.get("encoder_lengths", np.zeros_like(arrays["lengths"]))
    return [row[a:b] for row, a, b in zip(arrays["logits"], first, arrays["lengths"], strict=True)]


def structure(layer):
    """What layers have in common if they share compiled stages."""
    names = ("is_moe", "window", "decodes")
    return (*(getattr(layer, name, None) for name in names), hasattr(layer, "encoder_norm"))


def test_all_families_are_here():
    assert {read_config(GOLDENS / case).model_type for case in FAMILY} == set(FAMILY.values()) <= set(FAMILIES)


# Of the others tests/models/test_goldens.py has the tokens and routes at any rate.
TWO_FAMILIES = ("qwen2_moe_window", "switch_small_capacity")
SOME_FAMILIES = [pytest.param(case, marks=() if case in TWO_FAMILIES else pytest.mark.slow) for case in FAMILY]


@pytest.mark.parametrize("case", SOME_FAMILIES)
def test_greedy_tokens_and_routes_of_transformers_and_the_same_bits_at_half_the_experts(case):
    arrays = ragged(case)
    given = request(arrays)
    rows = [len(own) for own in answered(arrays)]
    with load(case, policy="resident") as model:
        expected = model.logits(**given)
    for row, (own, length) in enumerate(zip(answered(arrays), rows, strict=True)):
        assert relative_error(expected[row, :length], own) <= TOLERANCE
    with load(case, policy="cache_moe", cache_fraction=0.5) as model:
        found = model.logits(**given)
        assert found.shape == expected.shape
        for row, length in enumerate(rows):
            np.testing.assert_array_equal(found[row, :length], expected[row, :length])
        routes = model.routing_trace(**given).experts
        inside = np.arange(routes.shape[1]) < arrays["lengths"][:, None]
        np.testing.assert_array_equal(routes[inside], arrays["expert_ids"].transpose(0, 2, 1, 3)[inside])
        answers = model.generate(prompts(arrays), max_new_tokens=16, **decoder(arrays))
        assert [answer.token_ids for answer in answers] == arrays["tokens"].tolist()
        assert model.stats()["lossless"]
        assert model.stats()["misses"] > 0
        structures = {structure(layer) for layer in load_model(GOLDENS / case).layers}
        assert len({id(stage) for stage in model._model.stages.layer_stages}) == len(structures)


# All that a layer may have: a window, a shared expert, none at all; and two stacks.
@pytest.mark.slow
@pytest.mark.parametrize("case", TWO_FAMILIES)
def test_traces_for_a_predictor_are_those_of_transformers(case):
    """The recorder answers with the same tokens over the same routes."""
    arrays = ragged(case)
    encoded = [None] * len(arrays["lengths"]) if "encoder_lengths" not in arrays else arrays["encoder_lengths"].tolist()
    rows = zip(arrays["input_ids"], arrays["lengths"], encoded, strict=True)
    found = [Prompt(row[:length].astype(np.int32), encoder_tokens=own) for row, length, own in rows]
    recorder = Recorder(load_model(GOLDENS / case), (), "a model")
    _, trace, answers = recorder.record(found, np.full(len(found), 16))
    assert answers == arrays["tokens"].tolist()
    for row, length in enumerate(arrays["lengths"]):
        np.testing.assert_array_equal(trace.experts[row, :length], arrays["expert_ids"][row, :, :length].swapaxes(0, 1))


@pytest.mark.parametrize("case", TWO_FAMILIES)
def test_a_budget_without_a_vision_tower_and_images_refused(case):
    with load(case, policy="resident") as model:
        everything = model.memory_plan()
    budget = everything.total_bytes - 7 * everything.expert_bytes
    with load(case, memory_budget=budget, policy="on_demand") as model:
        assert model.memory_plan().slots == everything.slots - 7
        assert model.memory_plan().total_bytes <= budget
        with pytest.raises(InputError, match="takes no images"):
            model.logits(np.ones((1, 4), int), pixel_values=np.zeros((4, 6)), image_grid_thw=np.array([[1, 2, 2]]))


@pytest.mark.parametrize("case", FAMILY)
def test_save_writes_what_transformers_wrote(tmp_path, case):
    module = load_model(GOLDENS / case)
    save_hf(tmp_path, module.config, module, np.float32)
    mine, theirs = (load_file(path / "model.safetensors") for path in (tmp_path, GOLDENS / case))
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert read_config(tmp_path) == module.config


def test_fused_experts_load_as_separate_ones_do(tmp_path):
    case = GOLDENS / "qwen3_moe_stretched"
    tensors = load_file(case / "model.safetensors")
    for layer in read_config(case).text.moe_layers:
        prefix = f"model.layers.{layer}.mlp.experts"
        parts = {
            part: np.stack([tensors.pop(f"{prefix}.{expert}.{part}_proj.weight") for expert in range(8)])
            for part in ("gate", "up", "down")
        }
        tensors[f"{prefix}.gate_up_proj"] = np.concatenate([parts["gate"], parts["up"]], axis=1)
        tensors[f"{prefix}.down_proj"] = parts["down"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((case / "config.json").read_text())
    first, second = (nnx.to_flat_state(nnx.state(load_model(path))) for path in (case, tmp_path))
    assert all(np.array_equal(a[...], b[...]) for (_, a), (_, b) in zip(first, second, strict=True))


def test_missing_and_misshaped_experts_are_named_one_by_one(tmp_path):
    case = GOLDENS / "mixtral_window"
    tensors = load_file(case / "model.safetensors")
    first = "model.layers.1.block_sparse_moe.experts.3.w1.weight"
    del tensors[first]
    second = first.replace("w1", "w2")
    tensors[second] = np.ascontiguousarray(tensors[second].T)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((case / "config.json").read_text())
    with pytest.raises(InputError, match=f"1 missing: {first}; 1 of the wrong shape: {second} is"):
        load_model(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case in ("qwen2_moe_window", "switch_small_capacity") else pytest.mark.slow)
        for case in FAMILY
    ],
)
def test_bfloat16(case):
    """Narrow arithmetic throughout, near the wide one."""
    arrays = ragged(case)
    module = load_model(GOLDENS / case, jnp.bfloat16)
    assert {leaf.dtype for _, leaf in nnx.to_flat_state(nnx.state(module))} == {jnp.dtype(jnp.bfloat16)}
    row = int(arrays["lengths"].argmax())
    batch = padded(module, {name: array[row : row + 1] for name, array in arrays.items()})
    out = fused_forward(module, batch)
    first = 0 if batch.encoder_lengths is None else int(batch.encoder_lengths[0])
    expected = answered(arrays)[row]
    # Late tokens may route elsewhere in bfloat16; the first ones are close.
    assert relative_error(np.asarray(out.logits)[0, first], expected[0]) < 0.1


@pytest.mark.parametrize("case", ["mixtral_window", pytest.param("switch_small_capacity", marks=pytest.mark.slow)])
def test_text_in_text_out_without_a_template(tmp_path, case):
    """A base model with a tokenizer continues the text as it stands, or answers it, and takes no images."""
    values = json.loads((GOLDENS / case / "config.json").read_text())
    family = FAMILIES[FAMILY[case]]
    config = family.config.from_hf(values | {"vocab_size": PROCESSOR.vocab_size()})
    save_hf(tmp_path, config, random_module(family.module, config), np.float32)
    tokenizer = PROCESSOR.build_tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "Read the top row."
    ids = tokenizer.encode(text).ids
    with OffloadedModel.from_pretrained(str(tmp_path), cache_fraction=0.5, max_batch_size=2, max_tokens=32) as model:
        seen = []
        (answer,) = model.generate(text, max_new_tokens=4, stream=lambda *shown: seen.append(shown))
        assert seen[-1] == (0, answer.text)
        assert answer.token_ids == model.generate(np.array([ids]), max_new_tokens=4)[0].token_ids
        assert answer.text == tokenizer.decode(answer.token_ids)
        words = answer.text.split()
        (cut, other) = model.generate([text, "Read the"], max_new_tokens=4, stop=words[-1])
        assert (cut.finished, cut.text.split()) == (True, words[: words.index(words[-1])])
        assert other.token_ids == model.generate("Read the", max_new_tokens=4, stop=words[-1])[0].token_ids
        with pytest.raises(InputError, match="takes no images"):
            model.generate(text, [np.zeros((8, 8, 3), np.uint8)])
        with pytest.raises(InputError, match="a prompt is empty"):
            model.generate("")
