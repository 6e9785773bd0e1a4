"""Pre-gates (2308.12066): in every MoE layer but the last, a gate that names the experts of the next one.

    gate(h) = softmax(gelu(rms(h) W_inner) W_outer),   h the residual stream where the layer's own router reads it

Two matrices per layer, distilled from the next layer's router (`training.pregates`); the authors' gates are one matrix,
and MLPs by ExpertFlow's account of them. On disk: pregates.safetensors and pregates.json, which holds the fingerprint
of the one model that they belong to and a digest of the weights.
Axes: G = L - 1 gates, D model width, H gate width, E experts, K top-k, N tokens.
"""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as dump_tensors

from expertflow_jax.errors import InputError
from expertflow_jax.files import make_folder, write_atomically, write_json

FORMAT = "expertflow_jax.pregates/1"
WEIGHTS, CONFIG = "pregates.safetensors", "pregates.json"


@dataclasses.dataclass(frozen=True)
class PreGates:
    """Attributes:
    inner: float32 [G, D, H].
    outer: float32 [G, H, E].
    model_fingerprint: of the model that they were distilled from.
    facts: how they were trained and what they were measured to do.
    """

    inner: Float[Array, "G D H"]
    outer: Float[Array, "G H E"]
    model_fingerprint: str
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of its parameters on the device."""
        return int(self.inner.nbytes + self.outer.nbytes)

    def probs(self, gate: int, h: Float[Array, "*B D"]) -> Float[Array, "*B E"]:
        """What gate number `gate`, in MoE layer `gate`, says of the experts of MoE layer `gate` + 1."""
        return _probs(self.inner[gate], self.outer[gate], h)


def gate_logits(
    inner: Float[Array, "D H"], outer: Float[Array, "H E"], h: Float[Array, "*B D"]
) -> Float[Array, "*B E"]:
    """Before the softmax, in float32."""
    h = h.astype(jnp.float32)
    h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-6)
    return jax.nn.gelu(h @ inner) @ outer


@jax.jit
def _probs(inner: jax.Array, outer: jax.Array, h: jax.Array) -> jax.Array:
    return jax.nn.softmax(gate_logits(inner, outer, h), axis=-1)


@functools.partial(jax.jit, static_argnames=("top_k", "normalised"))
def choose(
    probs: Float[Array, "B T E"], *, top_k: int, normalised: bool
) -> tuple[Float[Array, "B T K"], Float[Array, "B T K"]]:
    """(expert ids int32, weights float32), as a router chooses by its probabilities."""
    weights, ids = jax.lax.top_k(probs, top_k)
    if normalised:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return ids.astype(jnp.int32), weights


def save_pregates(gates: PreGates, path: str | Path) -> None:
    """Writes both files into the folder `path`, each all or nothing, the description last."""
    folder = make_folder(path)
    weights = dump_tensors({name: np.ascontiguousarray(getattr(gates, name)) for name in ("inner", "outer")})
    description = {
        "format": FORMAT,
        "model_fingerprint": gates.model_fingerprint,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "facts": gates.facts,
    }
    write_atomically(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, description, indent=1)


def load_pregates(path: str | Path, fingerprint: str) -> PreGates:
    """Reads the gates of the model with this fingerprint.

    Raises:
      InputError: files missing, damaged or not matching each other; or the gates are another model's.
    """
    folder = Path(path)
    try:
        description = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = (folder / WEIGHTS).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"pre-gates {folder}: {error}; train them with train.pregate") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise InputError(f"pre-gates {folder / CONFIG}: not a {FORMAT} description; train them with train.pregate")
    if description.get("model_fingerprint") != fingerprint:
        raise InputError(
            f"pre-gates {folder}: distilled from model {description.get('model_fingerprint')}, not from {fingerprint}; "
            "train some for this model with train.pregate"
        )
    if hashlib.sha256(weights).hexdigest() != description.get("weights_sha256"):
        raise InputError(f"pre-gates {folder / WEIGHTS}: truncated, corrupt or not the one that {CONFIG} describes")
    try:
        tensors = load_tensors(weights)
        inner, outer = (jnp.asarray(tensors[name]) for name in ("inner", "outer"))
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"pre-gates {folder / WEIGHTS}: {error}; train them with train.pregate") from error
    return PreGates(inner, outer, fingerprint, description.get("facts") or {})
