"""Teacher-forced scoring: one prefill, then the log-likelihood of every token given those before it.

Axes: B sequences, T tokens, V vocabulary.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from expertflow_jax.inference.forecasting import Forecaster
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.processing.batching import Prompt, pad_prompts


@dataclasses.dataclass
class Scored:
    """How well the model foretold one sequence."""

    nats: np.ndarray  # float32 [T - 1], negative log-likelihood of tokens 1 and on; behind an encoder, of the decoder's
    greedy: np.ndarray  # int32 [T - 1], the likeliest token at each of these places
    last_logits: np.ndarray  # float32 [V], after the last token
    logits_digest: str  # of the logits at every place: bit-identity in one word


def score_batch(
    session: InferenceSession, prompts: Sequence[Prompt], forecaster: Forecaster, *, batch_size: int | None = None
) -> list[Scored]:
    """Scores a batch of sequences together.

    The head runs on one position of all sequences at a time: logits of B rows are what a memory plan holds.

    Args:
      session: the model and its expert cache.
      prompts: at most `batch_size`; fewer are padded with empty sequences, so compilations stay few.
      forecaster: horizon of the one step.
      batch_size: B; the number of prompts by default.

    Raises:
      NumericError: logits are NaN or infinite.
    """
    batch = pad_prompts(session.stages.config, prompts, batch_size)
    count = len(prompts)
    x, deepstack = session.embed(batch)
    sequences = session.start(batch, 0)
    horizon = forecaster.prefill(x, batch.lengths, batch.visits(session.stages.config.text), ends=True)
    hidden = session.prefill(batch, sequences, x, deepstack, horizon)
    first = np.zeros(count, np.int32) if batch.encoder_lengths is None else batch.encoder_lengths[:count]
    longest = int(batch.lengths.max())
    nats, greedy = np.zeros((count, longest), np.float32), np.zeros((count, longest), np.int32)
    digests = [hashlib.blake2b(digest_size=16) for _ in range(count)]
    last: list[np.ndarray] = [np.zeros(0, np.float32)] * count
    for place in range(int(first.min()), longest):
        logits_BxV = session.device_logits(hidden, np.full(len(batch.lengths), place + 1, np.int32))
        following = batch.input_ids[:, min(place + 1, batch.input_ids.shape[1] - 1)]
        logits, surprise, best, finite = jax.device_get((logits_BxV, *_judge(logits_BxV, following)))
        foretold = (first <= place) & (place < batch.lengths[:count])
        session.check_numbers(hidden, finite[:count] | ~foretold)
        for row in np.flatnonzero(foretold).tolist():
            digests[row].update(logits[row].tobytes())
            nats[row, place], greedy[row, place] = surprise[row], best[row]
            if place + 1 == batch.lengths[row]:
                last[row] = logits[row].copy()
    inside = [slice(int(a), int(b) - 1) for a, b in zip(first, batch.lengths[:count], strict=True)]
    return [Scored(nats[i, inside[i]], greedy[i, inside[i]], last[i], digests[i].hexdigest()) for i in range(count)]


@jax.jit
def _judge(logits: jax.Array, following: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """From logits [B, V]: negative log-likelihood of tokens [B], the likeliest ones [B], and whether all are finite."""
    chosen = jnp.take_along_axis(logits, following[:, None], axis=1)[:, 0]
    likeliest = logits.argmax(axis=1).astype(jnp.int32)
    return jax.nn.logsumexp(logits, axis=1) - chosen, likeliest, jnp.isfinite(logits).all(axis=1)
