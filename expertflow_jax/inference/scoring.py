"""Teacher-forced scoring: one prefill, then the log-likelihood of every token given those before it.

Axes: B sequences, T tokens, V vocabulary.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from expertflow_jax.inference.blocks import run_blocks
from expertflow_jax.inference.forecasting import Forecaster, Queue
from expertflow_jax.inference.members import Member
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.processing.batching import Prompt, pad_prompts


@dataclasses.dataclass
class Scored:
    """How well the model foretold one sequence; behind an encoder, its decoder's tokens.

    Attributes:
      nats: negative log-likelihood of tokens 1 and on.
      greedy: the likeliest token at each of these places.
      last_logits: after the last token.
      logits_digest: of the logits at every place: bit-identity in one word.
    """

    nats: Float[np.ndarray, "T-1"]
    greedy: Int[np.ndarray, "T-1"]
    last_logits: Float[np.ndarray, "V"]
    logits_digest: str


class _Scoring:
    """A batch whose tokens are to be judged (`blocks.Run`)."""

    ends = True

    def __init__(
        self, session: InferenceSession, prompts: Sequence[Prompt], queued: Queue, batch_size: int | None = None
    ):
        self.queued = queued
        self._session = session
        self._batch = pad_prompts(session.stages.config, prompts, batch_size)
        self._scored: list[Scored] = []
        self._count = len(prompts)
        x, deepstack = session.embed(self._batch)
        self._next: Member | None = Member.prefill(self._batch, session.start(self._batch, 0), x, deepstack)

    def member(self) -> Member:
        member, self._next = self._next, None
        assert member is not None, "a batch is scored in one step"
        return member

    def take(self, hidden: jax.Array) -> bool:
        """The head runs on one position of all sequences at a time: logits of B rows are what a memory plan holds."""
        batch, count = self._batch, self._count
        first = np.zeros(count, np.int32) if batch.encoder_lengths is None else batch.encoder_lengths[:count]
        longest = int(batch.lengths.max())
        nats, greedy = np.zeros((count, longest), np.float32), np.zeros((count, longest), np.int32)
        digests = [hashlib.blake2b(digest_size=16) for _ in range(count)]
        last: list[np.ndarray] = [np.zeros(0, np.float32)] * count
        for place in range(int(first.min()), longest):
            logits_BxV = self._session.device_logits(hidden, np.full(len(batch.lengths), place + 1, np.int32))
            following = batch.input_ids[:, min(place + 1, batch.input_ids.shape[1] - 1)]
            logits, surprise, best, finite = jax.device_get((logits_BxV, *_judge(logits_BxV, following)))
            foretold = (first <= place) & (place < batch.lengths[:count])
            self._session.check_numbers(hidden, finite[:count] | ~foretold)
            for row in np.flatnonzero(foretold).tolist():
                digests[row].update(logits[row].tobytes())
                nats[row, place], greedy[row, place] = surprise[row], best[row]
                if place + 1 == batch.lengths[row]:
                    last[row] = logits[row].copy()
        inside = [slice(int(a), int(b) - 1) for a, b in zip(first, batch.lengths[:count], strict=True)]
        self._scored = [
            Scored(nats[i, inside[i]], greedy[i, inside[i]], last[i], digests[i].hexdigest()) for i in range(count)
        ]
        return False

    def result(self) -> list[Scored]:
        return self._scored


def score_batches(
    session: InferenceSession,
    batches: Iterable[tuple[Sequence[Prompt], Queue]],
    forecaster: Forecaster,
    *,
    batch_size: int | None = None,
    batches_per_block: int = 1,
) -> Iterator[list[Scored]]:
    """Scores batches of sequences, several at once; yields what came of each batch, in order.

    Args:
      session: the model and its expert cache.
      batches: prompts of a batch, and what the batches behind it will use; taken from as there is room.
      forecaster: horizon of each super-step.
      batch_size: B; batches of fewer prompts are padded with empty sequences, so compilations stay few. Their number of
        prompts by default.
      batches_per_block: M, batches that run at once; no number depends on it.

    Raises:
      NumericError: logits are NaN or infinite.
    """
    runs = (_Scoring(session, prompts, queued, batch_size) for prompts, queued in batches)
    return run_blocks(session, runs, forecaster, batches_per_block)


def score_batch(
    session: InferenceSession, prompts: Sequence[Prompt], forecaster: Forecaster, *, batch_size: int | None = None
) -> list[Scored]:
    """Scores one batch of sequences; see `score_batches`."""
    return next(score_batches(session, [(prompts, ())], forecaster, batch_size=batch_size))


@jax.jit
def _judge(logits: jax.Array, following: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """From logits [B, V]: negative log-likelihood of tokens [B], the likeliest ones [B], and whether all are finite."""
    chosen = jnp.take_along_axis(logits, following[:, None], axis=1)[:, 0]
    likeliest = logits.argmax(axis=1).astype(jnp.int32)
    return jax.nn.logsumexp(logits, axis=1) - chosen, likeliest, jnp.isfinite(logits).all(axis=1)
