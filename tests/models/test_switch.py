"""What is Switch Transformers' own: capacity that is counted per sequence and step, two stacks behind one door, the
files that the hub holds."""

import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from random_module import random_module
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from model_parity import batches

from expertflow_jax import OffloadedModel
from expertflow_jax.checkpoints import load_model, save_hf
from expertflow_jax.checkpoints.families import FAMILIES
from expertflow_jax.errors import InputError
from expertflow_jax.models.switch_config import SwitchConfig
from expertflow_jax.models.switch_transformers import SwitchTransformers

GOLDEN = Path(__file__).parents[1] / "goldens" / "models" / "switch_small_capacity"
SMALL = {
    "model_type": "switch_transformers",
    "vocab_size": 48,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 12,
    "num_heads": 4,
    "num_experts": 4,
    "num_layers": 2,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
    "expert_capacity": 1,
}


def load(directory, **options):
    options = {"policy": "resident", "max_batch_size": 4, "max_tokens": 48} | options
    return OffloadedModel.from_pretrained(str(directory), **options)


@pytest.fixture(scope="module")
def golden():
    with load(GOLDEN) as model:
        yield model


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A directory whose experts take one token of a sequence."""
    directory = tmp_path_factory.mktemp("narrow")
    config = SwitchConfig.from_hf(SMALL)
    save_hf(directory, config, random_module(SwitchTransformers, config, seed=4), np.float32)
    return directory


def ragged(seed=0):
    rng = np.random.default_rng(seed)
    lengths = np.array([8, 3, 7])
    ids = rng.integers(5, 48, (3, 8))
    return ids, np.arange(8) < lengths[:, None], rng.integers(5, 48, (3, 5))


@pytest.mark.parametrize("policy", [pytest.param("resident", marks=pytest.mark.slow), "cache_moe"])
def test_no_other_sequence_of_a_batch_moves_a_token_to_another_expert_or_drops_it(policy):
    ids, mask, decoder = ragged()
    options = {"cache_fraction": 0.5} if policy != "resident" else {}
    with load(GOLDEN, policy=policy, **options) as model:
        together = model.routing_trace(ids, mask, decoder)
        logits = model.logits(ids, mask, decoder)
        dropped = 0
        for row, length in enumerate(mask.sum(axis=1)):
            alone = model.routing_trace(ids[row : row + 1, :length], None, decoder[row : row + 1])
            np.testing.assert_array_equal(alone.experts[0], together.experts[row, : length + 5])
            own = model.logits(ids[row : row + 1, :length], None, decoder[row : row + 1])
            np.testing.assert_allclose(logits[row], own[0], rtol=1e-4, atol=1e-4)
            encoder = load_model(GOLDEN).config.text.is_moe
            layers = [layer < 3 for layer in range(5) if encoder(layer)]
            dropped += int((alone.experts[0, :length][:, layers] < 0).sum())
        assert dropped > 0


@pytest.mark.slow
def test_a_decode_step_drops_nothing_and_a_prefill_of_the_same_tokens_does(narrow):
    """As in the reference, the capacity is that of one step: teacher-forced logits are not those of generation."""
    ids, mask, _ = ragged(1)
    with load(narrow) as model:
        answers = model.generate([row[own].tolist() for row, own in zip(ids, mask, strict=True)], max_new_tokens=8)
        decoder = np.array([[0, *answer.token_ids] for answer in answers])
        first = model.logits(ids, mask)
        forced = model.logits(ids, mask, decoder)
        assert first.shape == (3, 1, 48)
        np.testing.assert_allclose(forced[:, 0], first[:, 0], rtol=1e-5, atol=1e-5)
        decoded = model.routing_trace(ids, mask, decoder).experts[0, 8:, -1, 0]
        assert 0 < (decoded < 0).sum() < len(decoded)
        model._session.records = []
        model.generate(ids[:1], max_new_tokens=8)
        steps = [record.expert_ids for record in model._session.records if record.phase == "decode"]
        model._session.records = None
        assert len(steps) == 7
        assert all((step[..., -1, :] >= 0).all() and (step[..., 0, :] == -1).all() for step in steps)


def test_the_decoder_begins_with_its_start_token(golden):
    ids, mask, decoder = ragged(2)
    np.testing.assert_array_equal(golden.logits(ids, mask), golden.logits(ids, mask, np.zeros((3, 1), int)))
    prompts = [row[own].tolist() for row, own in zip(ids, mask, strict=True)]
    plain = golden.generate(prompts, max_new_tokens=3)
    assert plain == golden.generate(prompts, decoder_input_ids=np.zeros((3, 1), int), max_new_tokens=3)
    assert plain != golden.generate(prompts, decoder_input_ids=decoder, max_new_tokens=3)


@pytest.mark.parametrize(
    ("decoder", "said"),
    [
        (np.zeros((2, 3), int), r"want integers \[3, T\]"),
        (np.zeros((3, 0), int), "at least one token"),
        (np.zeros((3, 2)), "float64"),
        (np.zeros(3, int), "decoder_input_ids"),
        (np.full((3, 2), 48), "token 48 is outside the vocabulary of 48"),
    ],
)
def test_decoder_input_ids_that_do_not_fit(golden, decoder, said):
    with pytest.raises(InputError, match=said):
        golden.logits(*ragged()[:2], decoder)


def test_models_without_an_encoder_refuse_them():
    with load(GOLDEN.parent / "olmoe_clip") as model, pytest.raises(InputError, match="the model has no encoder"):
        model.logits(np.ones((1, 4), int), decoder_input_ids=np.ones((1, 2), int))


def test_requests_longer_than_the_plan_count_both_stacks(golden):
    assert golden.generate([[5] * 39], max_new_tokens=8)  # and the start token: 48
    with pytest.raises(InputError, match="load with max_tokens=49"):
        golden.generate([[5] * 40], max_new_tokens=8)


COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


@pytest.mark.parametrize("kept", [("shared.weight", *COPIES), ("decoder.embed_tokens.weight",), ("lm_head.weight",)])
def test_files_that_transformers_4_and_converters_wrote(tmp_path, kept):
    tensors = load_file(GOLDEN / "model.safetensors")
    table = tensors.pop("shared.weight")
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = np.ones((8, 4), np.float32)
    save_file(tensors | dict.fromkeys(kept, table), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((GOLDEN / "config.json").read_text())
    first, second = (nnx.to_flat_state(nnx.state(load_model(path))) for path in (GOLDEN, tmp_path))
    assert all(np.array_equal(a[...], b[...]) for (_, a), (_, b) in zip(first, second, strict=True))


def test_one_table_and_a_head_of_its_own(tmp_path):
    """As transformers 4 wrote models whose head is not tied: the stacks share a table all the same."""
    config = SwitchConfig.from_hf(SMALL | {"tie_word_embeddings": False})
    module = random_module(SwitchTransformers, config, seed=1)
    save_hf(tmp_path, config, module, np.float32)
    tensors = load_file(tmp_path / "model.safetensors")  # where they have a table each, and the shared one is spare
    assert set(COPIES) <= set(tensors)
    for name in COPIES[:2]:
        del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path)
    for table in (loaded.embed_tokens, loaded.decoder_embed_tokens):
        np.testing.assert_array_equal(table.embedding[...], tensors["shared.weight"])
    np.testing.assert_array_equal(loaded.lm_head.kernel[...], tensors["lm_head.weight"].T)


def test_sparse_steps_of_config_json_count():
    """transformers takes them from there where they are, whatever the numbers of sparse layers say."""
    stacks = (
        FAMILIES["switch_transformers"]
        .config.from_hf(
            SMALL
            | {"num_layers": 6, "num_sparse_encoder_layers": 3, "encoder_sparse_step": 3, "decoder_sparse_step": 1}
        )
        .text
    )
    assert stacks.moe_layers == (1, 4, 6, 7, 8, 9, 10, 11)


def test_reference_batches_drop_tokens():
    """What the parity checks compare is not vacuous."""
    arrays = batches(GOLDEN / "reference.npz")["ragged"]
    inside = np.arange(arrays["input_ids"].shape[1]) < arrays["encoder_lengths"][:, None]
    assert (arrays["expert_ids"][:, 0, :, 0][inside] < 0).any()
