"""Quantised experts: errors within half a step of each group, as NumPy unpacks them, bytes as promised."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from expertflow_jax.errors import InputError
from expertflow_jax.models.expert_dtypes import BITS
from expertflow_jax.models.experts import ExpertKind, ExpertLayout, run_expert_group
from expertflow_jax.models.quantized import GROUP, QuantizedLayout, layout_for

KINDS = sorted(BITS)


def unpacked_by_hand(layout: QuantizedLayout, packed: np.ndarray) -> np.ndarray:
    """float32 [G, GROUP], number by number."""
    count = layout.groups * GROUP * layout.bits // 8
    scales = packed[count:].view(ml_dtypes.bfloat16).astype(np.float32)
    rows = []
    for group in packed[:count].reshape(layout.groups, -1).tolist():
        if layout.bits == 8:
            rows.append([value - 256 if value > 127 else value for value in group])
        else:
            nibbles = [value & 15 for value in group] + [value >> 4 for value in group]
            rows.append([value - 16 if value > 7 else value for value in nibbles])
    return np.array(rows, np.float32) * scales[:, None]


def flat(parts) -> np.ndarray:
    return np.concatenate([np.asarray(part, np.float32).ravel() for part in parts])


@settings(max_examples=40, deadline=None)
@given(
    numbers=arrays(
        np.float32,
        3 * 6 * 7,
        elements=st.floats(-1e6, 1e6, width=32) | st.floats(-1, 1, width=32) | st.just(0.0),
    ),
    kind=st.sampled_from(KINDS),
)
def test_round_trip_is_within_half_a_step_of_each_group(numbers, kind):
    full = ExpertLayout(6, 7, np.dtype(np.float32))
    layout = layout_for(full, kind)
    gate_up, down = numbers[:84].reshape(6, 14), numbers[84:].reshape(7, 6)
    (packed,) = layout.pack(gate_up, down)
    assert packed.dtype == np.uint8
    assert packed.nbytes == layout.nbytes
    restored = flat(layout.unpack((packed,)))
    np.testing.assert_array_equal(restored, unpacked_by_hand(layout, packed).ravel()[: full.size])
    padded = np.zeros(layout.groups * GROUP, np.float32)
    padded[: full.size] = numbers
    largest = np.abs(padded.reshape(-1, GROUP)).max(axis=1)
    step = largest / (2 ** (layout.bits - 1) - 1)
    # a hair more for the scale's rounding to bfloat16, which moves every step by up to one part in 256
    bound = np.repeat(0.5 * step * (1 + 2**-8), GROUP)[: full.size] + 127 * np.finfo(np.float32).tiny
    assert (np.abs(restored - numbers) <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_travels_shrinks(kind, dtype):
    full = ExpertLayout(256, 192, jnp.dtype(dtype))
    layout = layout_for(full, kind)
    least = {("int8", "bfloat16"): 1.9, ("int4", "bfloat16"): 3.7, ("int8", "float32"): 3.8, ("int4", "float32"): 7.5}
    assert full.nbytes / layout.nbytes >= least[kind, dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_typical_weights_keep_most_of_their_precision(kind):
    rng = np.random.default_rng(0)
    full = ExpertLayout(128, 96, jnp.dtype(jnp.bfloat16))
    layout = layout_for(full, kind)
    parts = rng.normal(size=(128, 192)) * 0.02, rng.normal(size=(96, 128)) * 0.02
    before, after = flat(parts), flat(layout.unpack(layout.pack(*parts)))
    error = np.sqrt(np.mean((before - after) ** 2)) / np.std(before)
    assert error <= {"int8": 0.008, "int4": 0.12}[kind]


def test_experts_without_a_gate():
    full = ExpertLayout(8, 16, np.dtype(np.float32), ExpertKind("relu", gated=False))
    layout = layout_for(full, "int8")
    up, down = np.ones((8, 16), np.float32), np.full((16, 8), 2.0, np.float32)
    restored = layout.unpack(layout.pack(up, down))
    assert restored[0].shape == (8, 16)
    np.testing.assert_allclose(flat(restored), flat((up, down)), rtol=0.005)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(value):
    layout = layout_for(ExpertLayout(4, 4, np.dtype(np.float32)), "int4")
    gate_up = np.zeros((4, 8), np.float32)
    gate_up[1, 1] = value
    with pytest.raises(InputError, match="NaN or infinity"):
        layout.pack(gate_up, np.zeros((4, 4), np.float32))


def test_another_dtype_is_refused():
    with pytest.raises(InputError, match="choose int8 or int4"):
        layout_for(ExpertLayout(4, 4, np.dtype(np.float32)), "fp8")


def random_layout_and_buffers(kind, dtype, d=64, f=48, count=8):
    rng = np.random.default_rng(1)
    layout = layout_for(ExpertLayout(d, f, jnp.dtype(dtype)), kind)
    return layout, [
        tuple(map(jnp.asarray, layout.pack(rng.normal(size=(d, 2 * f)), rng.normal(size=(f, d))))) for _ in range(count)
    ]


@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_group_computes_what_its_experts_compute_alone(kind, dtype, apart):
    layout, buffers = random_layout_and_buffers(kind, dtype)
    rng = np.random.default_rng(2)
    y = jnp.asarray(rng.normal(size=(16, 64)), dtype)
    rows = rng.permutation(32).reshape(8, 4).astype(np.int32)
    run = jax.jit(lambda out, y, rows, *b: run_expert_group(layout, b, rows, y, out, apart))
    together = run(jnp.zeros((33, 64), dtype), y, rows, *buffers)
    alone = jnp.zeros((33, 64), dtype)
    for i, buffer in enumerate(buffers):
        alone = run(alone, y, rows[i : i + 1], buffer)
    np.testing.assert_array_equal(np.asarray(together[:32], np.float32), np.asarray(alone[:32], np.float32))


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_one_expert_is_unpacked_at_a_time(kind):
    """What the memory plan counts on: temporaries of a group of eight are those of one expert."""
    layout, buffers = random_layout_and_buffers(kind, "bfloat16", d=256, f=256)
    run = jax.jit(lambda out, y, rows, *b: run_expert_group(layout, b, rows, y, out))
    y, rows = jnp.zeros((8, 256), jnp.bfloat16), np.zeros((8, 8), np.int32)
    compiled = run.lower(jnp.zeros((17, 256), jnp.bfloat16), y, rows, *buffers).compile()
    activations = 8 * 8 * (2 * 256 + 3 * 256) * 4
    assert compiled.memory_analysis().temp_size_in_bytes <= layout.scratch_bytes + activations
