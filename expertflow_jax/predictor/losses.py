"""Losses of the routing path predictor: which experts, of E, does a token use at each layer.

Every token has K right answers per layer, so this is multi-label classification, and what counts is recall
when more experts are fetched than one token uses: a batch's forecast is the union of its tokens', and the
cache has room for a fraction of the experts, not for K. Two losses are offered
(`configs/digit_scenes_predictor.py` says which is used and why). "bce", binary cross-entropy of each expert, is a
proper score, so its probabilities can be combined over a batch; `positive_weight` w > 1 counts misses w times, which
moves the model's effort from probability 1/2 to 1 / (1 + w), towards the experts further down the ranking that a
larger budget reaches (calibration undoes the shift). "softmax", cross-entropy against K equal targets, sees the
ranking within a token only.
Axes: B batch, T tokens, L MoE layers, E experts, K top-k.
"""

import jax
import jax.numpy as jnp

from expertflow_jax.errors import InputError

LOSSES = ("bce", "softmax")


def multi_hot(experts: jax.Array, num_experts: int) -> jax.Array:
    """int32 [..., K] with -1 for none -> float32 [..., E], 1 where chosen."""
    return (experts[..., None] == jnp.arange(num_experts)).any(-2).astype(jnp.float32)


def routing_loss(
    logits: jax.Array,
    experts: jax.Array,
    *,
    kind: str = "bce",
    positive_weight: float = 1.0,
    token_weights: jax.Array | None = None,
    counted: jax.Array | None = None,
) -> jax.Array:
    """Mean loss per token and layer that counts.

    Args:
      logits: float32 [B, T, L, E].
      experts: int32 [B, T, L, K], -1 for none.
      kind: "bce" or "softmax".
      positive_weight: weight of a chosen expert against one not chosen ("bce" only).
      token_weights: float32 [B, T] or None (all 1).
      counted: bool [B, T, L]; None: the layers at which the token has an expert.

    Returns:
      float32 scalar, nats.

    Raises:
      InputError: unknown kind.
    """
    target = multi_hot(experts, logits.shape[-1])
    if kind == "bce":
        miss = positive_weight * target * jax.nn.softplus(-logits)
        per_layer = (miss + (1 - target) * jax.nn.softplus(logits)).sum(-1)
    elif kind == "softmax":
        share = target / jnp.maximum(target.sum(-1, keepdims=True), 1)
        per_layer = -(share * jax.nn.log_softmax(logits, axis=-1)).sum(-1)
    else:
        raise InputError(f"loss {kind!r}: choose one of {', '.join(LOSSES)}")
    weight = ((experts >= 0).any(-1) if counted is None else counted).astype(jnp.float32)
    if token_weights is not None:
        weight = weight * token_weights[..., None]
    return (weight * per_layer).sum() / jnp.maximum(weight.sum(), 1e-9)
