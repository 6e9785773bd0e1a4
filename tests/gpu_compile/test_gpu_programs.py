"""What XLA makes of every stage of two full-size models for three NVIDIA cards: read off the compiled programs.

Needs JAX's CUDA plugin, but no GPU, no driver and no other package of NVIDIA's: see CONTRIBUTING.md.
"""

import functools
import importlib.util
import os
import re

import pytest
from gpu_compile_programs import CARDS, DescribedModel, Program

MODELS = ("qwen3_vl_30b_a3b", "mixtral_8x7b")
SIZES = (1, 2, 4, 8)  # experts of a group
EVERY = [(model, card) for model in MODELS for card in CARDS]
WHOLE = [(model, "h100") for model in MODELS]  # all stages; on other cards what decoding runs in every layer
MB = 1_000_000

# Kernels and library calls of one sequence in attention and router, as counted, with the sum over the experts before
# and the zeros for those to come; a change of XLA or of the model that adds one is to be noticed.
ATTENTION_KERNELS = {"qwen3_vl_30b_a3b": 33, "mixtral_8x7b": 29}
KERNELS = {"qwen3_vl_30b_a3b": 3, "mixtral_8x7b": 4}  # of an expert of few rows; Mixtral's sums are split further


def _missing() -> str:
    if importlib.util.find_spec("jax_plugins") is None or importlib.util.find_spec("jax_plugins.xla_cuda13") is None:
        return "JAX's CUDA plugin is not installed: pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt"
    if os.environ.get("JAX_PLATFORMS") != "cpu":
        return "JAX_PLATFORMS=cpu must be set, or the plugin looks for a card"
    return ""


pytestmark = [pytest.mark.gpu_compile, pytest.mark.skipif(bool(_missing()), reason=_missing())]


@functools.cache
def model_on(model: str, card: str) -> DescribedModel:
    return DescribedModel(model, card)


@functools.cache
def group(model: str, card: str, size: int, tokens: int = 1) -> Program:
    described = model_on(model, card)
    return described.group(size, described.least_rows(tokens), tokens)


@functools.cache
def attention(model: str, card: str, batch: int, length: int) -> Program:
    return model_on(model, card).attend(batch, length)


@pytest.mark.parametrize(("model", "card"), EVERY)
def test_a_decode_group_writes_no_product_out_and_stays_in_place(model, card):
    output = model_on(model, card).output(1)
    for size in SIZES:
        program = group(model, card, size)
        assert program.temporary < MB
        assert program.aliased >= 2 * output.size
        assert len(program.kernels) <= KERNELS[model] * size + 1


@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize(("model", "card"), EVERY)
def test_an_expert_is_computed_alike_in_a_group_of_any_size(model, card, tokens):
    alone = group(model, card, 1, tokens)
    assert alone.arithmetic
    for size in SIZES[1:]:
        program = group(model, card, size, tokens)
        assert set(program.arithmetic) == set(alone.arithmetic)
        assert len(program.arithmetic) == size * len(alone.arithmetic)


@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize(("model", "card"), EVERY)
def test_rows_are_taken_and_put_in_place_without_arithmetic(model, card, tokens):
    for size in SIZES:
        moves = group(model, card, size, tokens).moves
        assert moves
        for move in moves:
            assert not re.search(r" (reduce|dot|exponential|divide)\(|(bf16|f32)\S* (multiply|add)\(", move)


@pytest.mark.parametrize(("model", "card"), EVERY)
def test_experts_of_a_pool_take_two_kernels_which_are_the_same_for_any_number_of_tiles(model, card):
    described, kernels = model_on(model, card), []
    for tiles in (2, 8, 64):
        program = described.tiles(tiles, tokens=8)
        assert len(program.kernels) == 2
        assert program.aliased >= 2 * described.output(8).size
        assert program.temporary < (MB if tiles <= 8 and model.startswith("qwen") else 32 * MB)
        kernels.append(program.pallas_kernels)
    assert [len(kernel) > 50 for kernel in kernels[0]] == [True, True]
    assert kernels[0] == kernels[1] == kernels[2]


@pytest.mark.parametrize(("model", "card"), WHOLE)
def test_finding_rows_among_the_choices_takes_few_kernels_more(model, card):
    described = model_on(model, card)
    for tokens, more in ((1, 3), (8, 4)):
        program = described.named_tiles(8, tokens)
        assert len(program.kernels) <= 2 + more
        assert program.aliased >= 2 * described.output(tokens).size
        assert program.pallas_kernels == described.tiles(8, tokens).pallas_kernels


@pytest.mark.parametrize(("model", "card"), EVERY)
def test_an_expert_is_copied_into_a_pool_in_place(model, card):
    described = model_on(model, card)
    program = described.commit()
    assert program.aliased >= sum(2 * part.size for part in described.pool(64))
    assert program.temporary < MB
    assert len(program.kernels) <= 2


@pytest.mark.parametrize(("model", "card"), EVERY)
def test_attention_writes_keys_and_values_in_place(model, card):
    described, program = model_on(model, card), attention(model, card, 1, 1)
    assert program.aliased >= described.kv_bytes(1)
    assert len(program.kernels) <= ATTENTION_KERNELS[model]
    assert program.temporary < 40 * MB  # the output projection's products, which one row alone makes XLA write out


@pytest.mark.parametrize(("model", "card"), WHOLE)
def test_every_other_stage_compiles(model, card):
    described = model_on(model, card)
    for batch, length in ((8, 1), (1, 512)):
        program = attention(model, card, batch, length)
        assert program.aliased >= described.kv_bytes(batch)
    assert described.group(8, 32, 8).aliased
    assert described.group(4, 128, 512).aliased
    for name, program in described.small_stages().items():
        assert program.temporary < 2 * MB, name
        assert len(program.kernels) <= 8, name


def test_the_vision_tower_compiles():
    program = model_on("qwen3_vl_30b_a3b", "h100").vision(32, 32)
    assert program.temporary < 200 * MB
