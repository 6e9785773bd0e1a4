"""The weights are those that transformers would load: heads of their own, two sets in a folder, names in memory, long
contexts; answers of tests/goldens/checkpoints are transformers 5.24's. Quantised weights are refused by name."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from expertflow_jax import OffloadedModel
from expertflow_jax.checkpoints import load_dense_and_experts, load_model, save_hf
from expertflow_jax.checkpoints.load import read_config
from expertflow_jax.errors import InputError
from expertflow_jax.inference.planning import ModelSizes
from expertflow_jax.models.rope_scaling import RopeScaling, dynamic_frequencies, inverse_frequencies

GOLDENS = Path(__file__).parents[1] / "goldens"
ANSWERED = ("tied_with_own_head", "stale_index", "mixtral_v5_names", "yarn_context")
TEXT = ("qwen3_moe_stretched", "olmoe_clip", "qwen2_moe_window", "mixtral_window", "base", "aria")


def rewrite(source: Path, directory: Path, change, config=None) -> Path:
    """A copy of a checkpoint with changed tensors and config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    values = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps(values | (config or {})), encoding="utf-8")
    tensors = change(load_file(source / "model.safetensors"))
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, directory / "model.safetensors")
    return directory


def parameters(directory: Path) -> dict:
    return {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(load_model(directory)))}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def refusal(directory: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_dense_and_experts(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def head_name(source: Path) -> str:
    return next(name for name in load_file(source / "model.safetensors") if name.endswith("lm_head.weight"))


def table_name(source: Path) -> str:
    return next(name for name in load_file(source / "model.safetensors") if name.endswith("embed_tokens.weight"))


@pytest.mark.parametrize("case", ANSWERED)
def test_logits_and_greedy_tokens_of_transformers(case):
    with np.load(GOLDENS / "checkpoints" / case / "expected.npz") as arrays:
        ids, last, greedy = (arrays[name] for name in ("input_ids", "last_logits", "greedy"))
    with OffloadedModel.from_pretrained(str(GOLDENS / "checkpoints" / case), policy="resident") as model:
        np.testing.assert_allclose(model.logits(ids)[0, -1], last, rtol=0, atol=1e-4 * np.abs(last).max())
        assert model.generate(ids.tolist(), max_new_tokens=len(greedy))[0].token_ids == greedy.tolist()


SOME = [pytest.param(case, marks=() if case in ("base", "qwen2_moe_window") else pytest.mark.slow) for case in TEXT]


@pytest.mark.parametrize("case", SOME)
def test_a_stored_head_stays_whatever_the_config_ties(tmp_path, case):
    source = GOLDENS / "models" / case
    tied = rewrite(source, tmp_path / "tied", lambda tensors: tensors, {"tie_word_embeddings": True})
    assert same(parameters(tied), parameters(source))
    assert not load_model(tied).config.tie_word_embeddings
    head, table = head_name(source), table_name(source)
    equal = rewrite(source, tmp_path / "equal", lambda t: t | {head: t[table]}, {"tie_word_embeddings": True})
    absent = rewrite(source, tmp_path / "absent", lambda t: (t.pop(head), t)[1], {"tie_word_embeddings": True})
    alone = rewrite(
        source, tmp_path / "alone", lambda t: (t.update({head: t.pop(table)}), t)[1], {"tie_word_embeddings": True}
    )
    assert same(parameters(equal), parameters(absent))
    assert same(parameters(alone), parameters(absent))
    assert ("lm_head", "kernel") not in parameters(absent)


def test_tables_of_switch_stay_their_own_and_the_head_is_scaled(tmp_path):
    """`tie_word_embeddings` scales what the head reads, whichever table that is."""
    source = GOLDENS / "models" / "switch_small_capacity"

    def own(tensors):
        shared = tensors["shared.weight"]
        return tensors | {"decoder.embed_tokens.weight": shared * 2, "lm_head.weight": shared[::-1]}

    plain, module = load_model(source), load_model(rewrite(source, tmp_path / "own", own))
    np.testing.assert_array_equal(module.embed_tokens.embedding[...], plain.embed_tokens.embedding[...])
    np.testing.assert_array_equal(module.decoder_embed_tokens.embedding[...], plain.embed_tokens.embedding[...] * 2)
    x = jnp.linspace(-1, 1, module.config.text.hidden_size)[None]
    np.testing.assert_allclose(module.head_stage(x), plain.head_stage(x)[:, ::-1], rtol=1e-4, atol=1e-5)
    save_hf(tmp_path / "again", module.config, module, np.float32)
    assert same(parameters(tmp_path / "again"), parameters(tmp_path / "own"))
    equal = rewrite(source, tmp_path / "equal", lambda t: t | {"lm_head.weight": t["shared.weight"].copy()})
    assert same(parameters(equal), parameters(source))


def test_a_bare_trunk_with_a_tied_head(tmp_path):
    source = GOLDENS / "models" / "qwen3_moe_stretched"
    absent = rewrite(source, tmp_path / "a", lambda t: (t.pop("lm_head.weight"), t)[1], {"tie_word_embeddings": True})
    bare = rewrite(
        absent, tmp_path / "b", lambda tensors: {name.removeprefix("model."): t for name, t in tensors.items()}
    )
    assert same(parameters(bare), parameters(absent))


def test_the_names_that_mixtral_has_in_memory(tmp_path):
    source = GOLDENS / "models" / "mixtral_window"
    experts = read_config(source).text.num_experts

    def fused(tensors):
        stacked = {}
        for name in [name for name in tensors if ".experts.0.w1." in name]:
            begin, mlp = name.split(".0.w1.")[0], name.split(".0.w1.")[0].replace("block_sparse_moe", "mlp")
            w1, w2, w3 = (
                np.stack([tensors[f"{begin}.{e}.{part}.weight"] for e in range(experts)]) for part in ("w1", "w2", "w3")
            )
            stacked |= {f"{mlp}.gate_up_proj": np.concatenate([w1, w3], axis=1), f"{mlp}.down_proj": w2}
        dense = {n.replace("block_sparse_moe", "mlp"): t for n, t in tensors.items() if ".experts." not in n}
        return dense | stacked

    assert same(parameters(rewrite(source, tmp_path, fused)), parameters(source))


def test_contexts_that_recipes_stretch(tmp_path):
    source = GOLDENS / "checkpoints" / "yarn_context"

    def context(**rope):
        values = json.loads((source / "config.json").read_text(encoding="utf-8"))
        (tmp_path / "config.json").write_text(
            json.dumps(values | {"rope_parameters": rope | {"rope_theta": 10_000.0}}), encoding="utf-8"
        )
        return read_config(tmp_path).text.context

    assert context(rope_type="default") == 64
    assert context(rope_type="linear", factor=4.0) == 256
    assert context(rope_type="dynamic", factor=2.0) == 128
    assert context(rope_type="yarn", factor=4.0, original_max_position_embeddings=64) == 256
    assert context(rope_type="yarn", factor=2.0, original_max_position_embeddings=32) == 64
    llama = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    assert context(rope_type="llama3", factor=8.0, **llama) == 256
    assert RopeScaling("linear", 1e30).reach(64) < 1 << 31


def test_the_plan_knows_the_stretched_context():
    with OffloadedModel.from_pretrained(str(GOLDENS / "checkpoints" / "yarn_context"), max_batch_size=1) as model:
        assert len(model.generate([[5] * 250], max_new_tokens=6)[0].token_ids) > 0
        with pytest.raises(InputError, match="context is 256"):
            model.generate([[5] * 260], max_new_tokens=6)


def test_the_plan_counts_the_stored_head(tmp_path):
    case = GOLDENS / "checkpoints" / "tied_with_own_head"
    with OffloadedModel.from_pretrained(str(case), max_batch_size=1) as model:
        dense = model.memory_plan().dense_bytes
    assert ModelSizes.described_in(case, None, None, None).dense_bytes == dense
    shutil.copy(case / "config.json", tmp_path)  # without weights nobody can know
    assert ModelSizes.described_in(tmp_path, None, None, None).dense_bytes == dense - 48 * 16 * 4


def test_dynamic_frequencies_follow_each_sequence():
    """transformers' formula of a batch of one; within the context nothing changes."""
    turns = np.asarray(dynamic_frequencies(jnp.array([10, 64, 100]), 8, 10_000.0, 4.0, 64))
    np.testing.assert_allclose(turns[:2], np.tile(inverse_frequencies(8, 10_000.0), (2, 1)), rtol=1e-6)
    base = 10_000.0 * (4.0 * 100 / 64 - 3.0) ** (8 / 6)
    np.testing.assert_allclose(turns[2], 1 / base ** (np.arange(0, 8, 2) / 8), rtol=1e-5)


def quantized(tmp_path, settings=None, **tensors) -> str:
    """What is said of a checkpoint with such settings, or with such tensors in the place of an expert's."""
    source = GOLDENS / "models" / "qwen3_moe_stretched"

    def packed(plain):
        named = min(name for name in plain if ".gate_proj." in name).removesuffix(".weight")
        if tensors:
            del plain[f"{named}.weight"]
        return plain | {f"{named}.{ending.replace('__', '.')}": t for ending, t in tensors.items()}

    return refusal(rewrite(source, tmp_path, packed, settings))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"quant_method": "gptq", "bits": 4}, "GPTQ of 4 bits"),
        ({"quant_method": "awq", "bits": 4}, "AWQ"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes of 4 bits"),
        ({"load_in_8bit": True}, "bitsandbytes of 8 bits"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "block FP8"),
        ({"quant_method": "mxfp4"}, "MXFP4"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "hqq"}, "HQQ"),
        ({"quant_method": "eetq"}, "EETQ"),
        ({"quant_method": "of_tomorrow"}, "of_tomorrow"),
    ],
)
def test_quantised_by_its_config(tmp_path, settings, name):
    said = quantized(tmp_path, {"quantization_config": settings})
    assert f"quantised with {name}" in said
    assert "bfloat16, float16 and float32" in said
    assert 'expert_dtype="int4"' in said


I32, U8, F32 = np.zeros((2, 2), np.int32), np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        ({"qweight": I32, "qzeros": I32, "scales": F32, "g_idx": I32}, "GPTQ"),
        ({"qweight": I32, "qzeros": I32, "scales": F32}, "GPTQ or AWQ"),
        ({"weight": U8, "weight__absmax": F32, "weight__quant_map": F32}, "bitsandbytes 4-bit"),
        ({"weight": U8, "SCB": F32}, "bitsandbytes 8-bit"),
        ({"weight": U8, "weight_scale_inv": F32}, "block FP8"),
        ({"weight_packed": I32, "weight_scale": F32, "weight_shape": I32}, "compressed-tensors"),
        ({"weight_blocks": U8, "weight_scales": U8}, "MXFP4"),
        ({"W_q": U8}, "HQQ"),
    ],
)
def test_quantised_by_its_tensors(tmp_path, tensors, name):
    assert f"quantised with {name}" in quantized(tmp_path, **tensors)


def test_quantised_by_its_dtype(tmp_path):
    eight = np.zeros((2, 2), jnp.float8_e4m3fn)
    assert "quantised with FP8" in quantized(tmp_path, weight=eight)


def test_a_quantised_checkpoint_is_named_before_its_weights_are_there(tmp_path):
    shutil.copy(GOLDENS / "checkpoints" / "gptq" / "config.json", tmp_path)
    with pytest.raises(InputError, match="GPTQ"):
        ModelSizes.described_in(tmp_path, None, None, None)


def test_flags_that_quantise_nothing(tmp_path):
    source = GOLDENS / "models" / "qwen3_moe_stretched"
    nothing = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False}
    rewrite(source, tmp_path, lambda tensors: tensors, {"quantization_config": nothing})
    assert same(parameters(tmp_path), parameters(source))
