"""Batched generation: prefill, then one decode step per token until every sequence has stopped.

Axes: B sequences, T prompt tokens, V vocabulary.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Sequence

import numpy as np

from expertflow_jax.inference.forecasting import Forecaster
from expertflow_jax.inference.sampling import Sampler
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.processing.batching import Prompt, pad_prompts


@dataclasses.dataclass
class Generated:
    """What one sequence answered."""

    token_ids: list[int]  # without the stop token
    first_logits: np.ndarray  # float32 [V], of the first answer token
    logits_digest: str  # of the logits of every answered token, the stop token's too: bit-identity in one word
    finished: bool  # met a stop token (or `on_token` said so) rather than the length limit


def generate_batch(
    session: InferenceSession,
    prompts: Sequence[Prompt],
    forecaster: Forecaster,
    *,
    max_new_tokens: Sequence[int],
    stop_ids: Collection[int],
    sampler: Sampler | None = None,
    batch_size: int | None = None,
    numbers: Sequence[int] | None = None,
    on_token: Callable[[int, int], bool] | None = None,
    on_end: Callable[[int], None] | None = None,
) -> list[Generated]:
    """Answers a batch of prompts together.

    Args:
      session: the model and its expert cache.
      prompts: at most `batch_size`; fewer are padded with empty sequences, so compilations stay few.
      forecaster: horizon of each step.
      max_new_tokens: per prompt.
      stop_ids: token ids that end an answer.
      sampler: greedy by default.
      batch_size: B; the number of prompts by default.
      numbers: of the prompts, by which `sampler` keys its draws; their places by default.
      on_token: called with (sequence, token id) as tokens are chosen, for streaming; true ends the sequence.
      on_end: called with (sequence) once no token of it will follow.
    """
    sampler = sampler or Sampler()
    keys = np.arange(len(prompts)) if numbers is None else np.asarray(numbers)
    batch = pad_prompts(session.stages.config, prompts, batch_size)
    count, size = len(prompts), len(batch.lengths)
    x, deepstack = session.embed(batch)
    sequences = session.start(batch, max(max_new_tokens))
    visits = batch.visits(session.stages.config.text)
    horizon = forecaster.prefill(x, batch.lengths, visits, ends=max(max_new_tokens) <= 1)
    hidden = session.prefill(batch, sequences, x, deepstack, horizon)
    logits = session.last_logits(hidden, batch.lengths)

    answers: list[list[int]] = [[] for _ in range(count)]
    digests = [hashlib.blake2b(digest_size=16) for _ in range(count)]
    finished = np.zeros(count, bool)
    active = np.arange(size) < count
    first_logits = logits[:count].copy()
    step = 0
    while True:
        rows = np.flatnonzero(active)
        tokens = np.zeros(size, np.int32)
        tokens[rows] = sampler.choose(logits if len(rows) == size else logits[rows], step, keys[rows])
        for i in rows.tolist():
            digests[i].update(logits[i].tobytes())
            token = int(tokens[i])
            if token in stop_ids:
                finished[i], active[i] = True, False
            else:
                answers[i].append(token)
                if on_token is not None and on_token(i, token):
                    finished[i], active[i] = True, False
                if len(answers[i]) >= max_new_tokens[i]:
                    active[i] = False
            if on_end is not None and not active[i]:
                on_end(i)
        if not active.any():
            break
        x = session.stages.embed(np.where(active, tokens, 0)[:, None].astype(np.int32), None, None)
        left = [max_new_tokens[i] - len(answers[i]) for i in np.flatnonzero(active).tolist()]
        horizon = forecaster.decode(x, active, ends=max(left) <= 1)
        hidden = session.decode(sequences, x, active, horizon)
        logits = session.last_logits(hidden, active.astype(np.int32))
        step += 1
    return [Generated(answers[i], first_logits[i], digests[i].hexdigest(), bool(finished[i])) for i in range(count)]
