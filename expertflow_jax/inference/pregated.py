"""Stages with pre-gates: as forecasts of the next layer, or in the place of every router but the first.

Axes: B sequences, T new tokens, D model width, L MoE layers, E experts, K top-k.
"""

import collections
from typing import Any

import jax
import jax.numpy as jnp

from expertflow_jax.errors import InputError
from expertflow_jax.inference.layer_stages import Attended
from expertflow_jax.locate import committed, locate
from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.policies.pregated_forecast import PregatedForecast
from expertflow_jax.predictor.pregates import PreGates, choose, load_pregates


class ForeseeingStages:
    """Stages where what is asked of the next router is answered by the pre-gate of the layer at hand."""

    def __init__(self, stages: Any, gates: PreGates):
        self._stages, self._gates = stages, gates
        self._number = {layer: number for number, layer in enumerate(stages.moe_layers)}  # of the MoE layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stages, name)

    def next_router(self, layer: int, h: jax.Array) -> jax.Array:
        """What the gate before `layer` says of its experts, of the residual stream h [B, T, D]: [B, T, E]."""
        return self._gates.probs(self._number[layer] - 1, h)


class PregatedStages(ForeseeingStages):
    """Stages where the pre-gate of the layer before decides what a layer's tokens choose, and with which weights."""

    def __init__(self, stages: Any, gates: PreGates):
        super().__init__(stages, gates)
        # what the gates have said of the layer of this number, one entry for each member of the super-step
        self._foretold: collections.deque[jax.Array] = collections.deque()
        self._latest = -1

    def attend_and_route(self, layer: int, x: Any, kv: Any, *where: Any) -> Attended:
        """As `Stages.attend_and_route`; members of a super-step come in the same order in every layer."""
        number, text = self._number[layer], self._stages.config.text
        attended = self._stages.attend_and_route(layer, x, kv, *where)
        if number == 0:
            if self._latest != 0:  # a new step; the last one may have been given up
                self._foretold.clear()
        else:
            probs = self._foretold.popleft()
            chosen, weights = choose(probs, top_k=text.num_experts_per_tok, normalised=text.norm_topk_prob)
            ids = jnp.where(attended.ids >= 0, chosen, -1)
            attended = attended._replace(ids=ids, weights=weights, probs=probs)
        self._latest = number
        if number + 1 < len(self._number):
            self._foretold.append(self._gates.probs(number, attended.h))
        return attended


def with_gates(stages: Any, policy: CachePolicy, model: Any) -> Any:
    """The stages as the policy wants them: with pre-gates, if it has some or the model comes with some.

    Raises:
      InputError: the policy cannot do without, and there are none, or they are another model's.
    """
    gates = gates_of(policy, model)
    if gates is None:
        return stages
    return (ForeseeingStages if policy.lossless else PregatedStages)(stages, gates)


def gates_of(policy: CachePolicy, model: Any) -> PreGates | None:
    """The pre-gates that the policy runs on the model; None: it runs none. Raises as `with_gates`."""
    if not isinstance(policy, PregatedForecast):
        return None
    name = policy.gates or committed_gates(getattr(model, "name", ""))
    if name:
        return load_pregates(locate(name, "pre-gates"), getattr(model, "fingerprint", ""))
    if policy.lossless:
        return None
    raise InputError(
        f"policy {policy.name}: no pre-gates; train some with train.pregate and write {policy.name}(gates='DIR')"
    )


def gate_bytes(policy: CachePolicy, model: Any) -> int:
    """Device bytes of the pre-gates that the policy runs on the model, beside its dense parameters."""
    gates = gates_of(policy, model)
    return 0 if gates is None else gates.nbytes


def committed_gates(model: str) -> str:
    """Name of the pre-gates that come with the committed model `model`; empty if there are none."""
    name = f"{model.removesuffix('_moe')}_pregates"
    return name if {model, name} <= set(committed()) else ""
