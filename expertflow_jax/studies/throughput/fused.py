"""The whole model as one jitted step, all experts at hand: what stepping layer by layer with a host in between costs.

The same dense parameters, KV cache, attention, router and head as the stages, with the experts stacked on the device;
two ways to compute experts, of which the faster one counts. Axes: B sequences, T tokens, N = B * T, R = N * K rows,
E experts, D model width, F expert width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from expertflow_jax.inference.members import Member
from expertflow_jax.inference.selection import whole_step
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.inference.stages import Stages
from expertflow_jax.models.experts import ExpertKind, grouped_experts, run_expert
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.workloads.setups import Setup

Stacked = list[tuple[jax.Array, jax.Array]]


def stacked_experts(setup: Setup) -> Stacked:
    """Per layer gate_up [E, D, 2F] and down [E, F, D] on the device."""
    store, layers = setup.store, []
    assert not isinstance(store, ExpertSizes), "a setup for plans alone has no experts"
    for layer in range(store.num_layers):
        keys = range(layer * store.num_experts, (layer + 1) * store.num_experts)
        parts = [store.layout.unpack(store.source(key)) for key in keys]
        gate_up, down = (np.stack(matrices) for matrices in zip(*parts, strict=True))
        layers.append((jnp.array(gate_up), jnp.array(down)))
    return layers


def scanned_experts(
    gate_up: jax.Array, down: jax.Array, y: jax.Array, expert_ids: jax.Array, kind: ExpertKind
) -> jax.Array:
    """As `grouped_experts`, one row after another: reads each row's expert in place, best for few rows."""
    tokens, top_k = expert_ids.shape
    rows = jnp.maximum(expert_ids.reshape(-1), 0)

    def one(_: None, at: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        row, expert = at
        taken = jax.lax.dynamic_slice_in_dim(y, row // top_k, 1)
        return None, run_expert(taken, gate_up[expert], down[expert], kind)[0]

    _, out = jax.lax.scan(one, None, (jnp.arange(tokens * top_k, dtype=jnp.int32), rows))
    return out.reshape(tokens, top_k, -1)


KERNELS: dict[str, Callable[..., jax.Array]] = {"tiles": grouped_experts, "scan": scanned_experts}


class FusedSession(InferenceSession):
    """`InferenceSession` without an engine: every step is one call. For text; images would need their features."""

    def __init__(self, stages: Stages, stacked: Stacked, kernel: str):
        self.stages = stages
        self.costs = None
        self._stacked = stacked
        kind = stages.config.text.expert_kind

        def run(experts: tuple[jax.Array, jax.Array], y: jax.Array, ids: jax.Array) -> jax.Array:
            return KERNELS[kernel](*experts, y, ids, kind).reshape(-1, y.shape[-1])

        self._fused = whole_step(stages, run)

    def _prepare_decoding(self, batch_size: int) -> None:
        pass

    def _settle(self) -> None:
        pass

    def begin_batch(self) -> None:
        pass

    def super_step(self, members: Sequence[Member], horizon: Any) -> list[jax.Array]:
        hidden = [self._run(member) for member in members]
        for member in members:
            member.advance()
        return hidden

    def _run(self, member: Member) -> jax.Array:
        sequences = member.sequences
        where = (member.positions, sequences.lengths, member.lengths)
        weights = self.stages.layer_weights
        sequences.kv, hidden, _ = self._fused(weights, self._stacked, sequences.kv, member.x, *where)
        return hidden
