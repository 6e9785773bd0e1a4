"""Losses of MoE language-model training. Axes: B sequences, T tokens, L MoE layers, E experts, K top-k, V vocabulary.

The load-balancing loss is Switch Transformers' (2101.03961, eq. 4) summed over the *whole* batch rather than per
sequence, after "Demons in the Detail" (2501.11873): a sequence may then prefer few experts as long as the batch
uses all, which is what leaves a token scheduler something to group.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


def answer_cross_entropy(logits: Array, input_ids: Array, answer_mask: Array) -> jax.Array:
    """Mean next-token cross entropy over the answer tokens.

    Args:
      logits: float32 [B, T, V]; position t predicts token t + 1.
      input_ids: int32 [B, T].
      answer_mask: bool [B, T], true on tokens to be predicted (the answer and its end mark).

    Returns:
      float32 scalar, nats.
    """
    log_probs = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    picked = jnp.take_along_axis(log_probs, input_ids[:, 1:, None], axis=-1)[..., 0]
    mask = answer_mask[:, 1:].astype(jnp.float32)
    return -(picked * mask).sum() / jnp.maximum(mask.sum(), 1.0)


def load_balancing_loss(router_probs: jax.Array, expert_ids: jax.Array) -> jax.Array:
    """E * sum_e f_e P_e, averaged over layers; 1 when perfectly balanced.

    Args:
      router_probs: float32 [B, L, T, E], softmax over all experts.
      expert_ids: int32 [B, L, T, K], -1 on padding.

    Returns:
      float32 scalar.
    """
    num_experts = router_probs.shape[-1]
    valid = (expert_ids[..., 0] >= 0).astype(jnp.float32)  # [B, L, T]
    tokens = jnp.maximum(valid.sum(axis=(0, 2)), 1.0)  # [L]
    chosen = jax.nn.one_hot(expert_ids, num_experts, dtype=jnp.float32)  # -1 becomes all zeros
    fraction = chosen.sum(axis=(0, 2, 3)) / (tokens[:, None] * expert_ids.shape[-1])  # [L, E]
    probability = (router_probs * valid[..., None]).sum(axis=(0, 2)) / tokens[:, None]
    return num_experts * (fraction * probability).sum(axis=-1).mean()


def exact_match(logits: Array, input_ids: Array, answer_mask: Array) -> jax.Array:
    """Whether greedy decoding would give exactly the reference answer, per sequence: bool [B].

    Under teacher forcing every answer token is the argmax if and only if free-running greedy decoding emits the
    same answer, so no decoding loop is needed during training.
    """
    predicted = jnp.argmax(logits[:, :-1], axis=-1)
    right = (predicted == input_ids[:, 1:]) | ~answer_mask[:, 1:]
    return right.all(axis=-1)


def distinct_experts(expert_ids: jax.Array, num_experts: int, group: int) -> jax.Array:
    """Mean number of distinct experts that `group` consecutive sequences activate per layer: float32 [L]."""
    batch = expert_ids.shape[0] // group * group
    used = jax.nn.one_hot(expert_ids[:batch], num_experts, dtype=jnp.float32).max(axis=(2, 3))  # [B, L, E]
    return used.reshape(-1, group, *used.shape[1:]).max(axis=1).sum(axis=-1).mean(axis=0)
