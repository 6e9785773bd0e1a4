"""The grouped kernel over a pool of experts, carried out step by step, beside the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from expertflow_jax.models.expert_kernel import plain_tiles, run_tiles
from expertflow_jax.models.experts import ExpertKind, ExpertLayout
from expertflow_jax.models.quantized import layout_for

TOKENS, TOP_K, SLOTS, ROWS = 5, 2, 6, 16


def random_case(layout, dtype, full):
    """A pool, MoE inputs [N, D], and a table of three tiles and one of nothing: slots 4, 1, 3."""
    rng = np.random.default_rng(0)
    shapes = [(full.d_model, full.width), (full.d_ff, full.d_model)]
    packed = [layout.pack(*(rng.normal(size=shape).astype(dtype) for shape in shapes)) for _ in range(SLOTS)]
    pool = tuple(jnp.stack(parts) for parts in zip(*packed, strict=True))
    y = jnp.asarray(rng.normal(size=(TOKENS, full.d_model)), dtype)
    table = np.full((4, 1 + ROWS), TOKENS * TOP_K, np.int32)
    table[:, 0] = [4, 1, 3, -1]
    rows = rng.permutation(TOKENS * TOP_K)
    table[0, 1:4], table[1, 1:5], table[2, 1:4] = rows[:3], rows[3:7], rows[7:]
    return pool, y, table


def empty(y):
    return jnp.zeros((TOKENS * TOP_K + 1, y.shape[1]), y.dtype)


def one_by_one(run, pool, y, table):
    """Each tile in a call of its own, with every expert in another slot than before."""
    out, moved = empty(y), tuple(jnp.roll(part, 1, axis=0) for part in pool)
    for tile in table[:3]:
        alone = np.full((2, 1 + ROWS), TOKENS * TOP_K, np.int32)
        alone[0], alone[0, 0], alone[1, 0] = tile, (tile[0] + 1) % SLOTS, -1
        out = run(moved, alone, y, out)
    return out


def numbers(out):
    return np.asarray(out[:-1], np.float32)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        ("float32", ExpertKind()),
        pytest.param("bfloat16", ExpertKind(), marks=pytest.mark.slow),
        pytest.param("float32", ExpertKind("gelu"), marks=pytest.mark.slow),
        pytest.param("bfloat16", ExpertKind("relu", gated=False), marks=pytest.mark.slow),
    ],
)
def test_the_kernel_agrees_with_the_plain_form_and_no_row_depends_on_its_company(dtype, kind):
    layout = ExpertLayout(48, 24, jnp.dtype(dtype), kind)
    pool, y, table = random_case(layout, dtype, layout)
    run = jax.jit(lambda *args: run_tiles(layout, *args, interpreted=True))
    together = numbers(run(pool, table, y, empty(y)))
    plain = numbers(jax.jit(lambda *args: plain_tiles(layout, *args))(pool, table, y, empty(y)))
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(together, plain, rtol=0, atol=tolerance * np.abs(plain).max())
    np.testing.assert_array_equal(numbers(one_by_one(run, pool, y, table)), together)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_experts_of_a_pool_run_as_they_do_alone(kind):
    full = ExpertLayout(64, 32, jnp.dtype("bfloat16"))
    layout = layout_for(full, kind)
    pool, y, table = random_case(layout, "bfloat16", full)
    run = jax.jit(lambda *args: run_tiles(layout, *args, interpreted=True))
    together = numbers(run(pool, table, y, empty(y)))
    assert np.isfinite(together).all()
    assert together.any(axis=1).all()
    np.testing.assert_array_equal(numbers(one_by_one(run, pool, y, table)), together)
