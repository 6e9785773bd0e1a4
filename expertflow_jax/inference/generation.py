"""Batched generation: prefill, then one decode step per token until every sequence has stopped.

Axes: B sequences, T prompt tokens, V vocabulary.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float

from expertflow_jax.inference.blocks import run_blocks
from expertflow_jax.inference.forecasting import Forecaster, Queue
from expertflow_jax.inference.members import Member
from expertflow_jax.inference.sampling import Sampler
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.processing.batching import Prompt, pad_prompts


@dataclasses.dataclass
class Generated:
    """What one sequence answered.

    Attributes:
      token_ids: without the stop token.
      first_logits: of the first answer token.
      logits_digest: of the logits of every answered token, the stop token's too: bit-identity in one word.
      finished: met a stop token (or `on_token` said so) rather than the length limit.
    """

    token_ids: list[int]
    first_logits: Float[np.ndarray, "V"]
    logits_digest: str
    finished: bool


@dataclasses.dataclass(frozen=True)
class BatchRequest:
    """Prompts to be answered as one batch.

    Attributes:
      prompts: at least one.
      max_new_tokens: per prompt.
      numbers: of the prompts, by which the sampler keys its draws and callbacks name them.
      queued: what the first steps of the batches behind this one will use, as far as it is known.
    """

    prompts: Sequence[Prompt]
    max_new_tokens: Sequence[int]
    numbers: Sequence[int] | np.ndarray
    queued: Queue = ()


@dataclasses.dataclass(frozen=True)
class Choosing:
    """How tokens are chosen, and who hears of them.

    Attributes:
      stop_ids: token ids that end an answer.
      sampler: greedy by default.
      on_token: called with (number of the prompt, token id) as tokens are chosen, for streaming; true ends the
        sequence.
      on_end: called with (number of the prompt) once no token of it will follow.
    """

    stop_ids: Collection[int]
    sampler: Sampler = dataclasses.field(default_factory=Sampler)
    on_token: Callable[[int, int], bool] | None = None
    on_end: Callable[[int], None] | None = None


class _Answering:
    """A batch on its way from its prompts to the last token of its answers (`blocks.Run`)."""

    def __init__(self, session: InferenceSession, request: BatchRequest, choosing: Choosing, batch_size: int | None):
        self.queued = request.queued
        self._session = session
        self._choosing = choosing
        self._limits = request.max_new_tokens
        self._numbers = np.asarray(request.numbers)
        batch = pad_prompts(session.stages.config, request.prompts, batch_size)
        x, deepstack = session.embed(batch)
        self._sequences = session.start(batch, max(self._limits))
        self._next: Member | None = Member.prefill(batch, self._sequences, x, deepstack)
        self._lengths = batch.lengths  # int32 [B], new tokens of the coming step
        count, size = len(request.prompts), len(batch.lengths)
        self._tokens = np.zeros(size, np.int32)  # [B], that the coming step reads
        self._active = np.arange(size) < count  # [B]
        self._finished = np.zeros(count, bool)
        self._answers: list[list[int]] = [[] for _ in range(count)]
        self._digests = [hashlib.blake2b(digest_size=16) for _ in range(count)]
        self._first_logits: np.ndarray | None = None  # float32 [B, V]
        self._step = 0

    @property
    def ends(self) -> bool:
        active = np.flatnonzero(self._active).tolist()
        return max(self._limits[i] - len(self._answers[i]) for i in active) <= 1

    def member(self) -> Member:
        member, self._next = self._next, None
        if member is not None:  # the prompts
            return member
        read = np.where(self._active, self._tokens, 0)[:, None].astype(np.int32)
        member = Member.decode(self._sequences, self._session.stages.embed(read, None, None), self._active)
        self._lengths = member.lengths
        return member

    def take(self, hidden: jax.Array) -> bool:
        logits = self._session.last_logits(hidden, self._lengths)
        if self._first_logits is None:
            self._first_logits = logits[: len(self._answers)].copy()
        rows = np.flatnonzero(self._active)
        whole = len(rows) == len(logits)
        self._tokens[rows] = self._choosing.sampler.choose(
            logits if whole else logits[rows], self._step, self._numbers[rows]
        )
        for row in rows.tolist():
            self._digests[row].update(logits[row].tobytes())
            self._append(row, int(self._tokens[row]))
        self._step += 1
        return bool(self._active.any())

    def _append(self, row: int, token: int) -> None:
        """The sequence's next token has been chosen."""
        number, choosing = int(self._numbers[row]), self._choosing
        finished = token in choosing.stop_ids
        if not finished:
            self._answers[row].append(token)
            finished = choosing.on_token is not None and choosing.on_token(number, token)
        if finished or len(self._answers[row]) >= self._limits[row]:
            self._finished[row], self._active[row] = finished, False
            if choosing.on_end is not None:
                choosing.on_end(number)

    def result(self) -> list[Generated]:
        assert self._first_logits is not None, "the prompts have not been read"
        parts = zip(self._answers, self._first_logits, self._digests, self._finished, strict=True)
        return [Generated(ids, logits, digest.hexdigest(), bool(end)) for ids, logits, digest, end in parts]


def generate_batches(
    session: InferenceSession,
    requests: Iterable[BatchRequest],
    forecaster: Forecaster,
    choosing: Choosing,
    *,
    batch_size: int | None = None,
    batches_per_block: int = 1,
) -> Iterator[list[Generated]]:
    """Answers batches of prompts, several at once; yields the answers of each batch, in order.

    Args:
      session: the model and its expert cache.
      requests: each of at most `batch_size` prompts; taken from as there is room.
      forecaster: horizon of each super-step.
      choosing: how tokens are chosen.
      batch_size: B; batches of fewer prompts are padded with empty sequences, so compilations stay few. Their number of
        prompts by default.
      batches_per_block: M, batches that run at once. Answers do not depend on it, nor does any logit.
    """
    runs = (_Answering(session, request, choosing, batch_size) for request in requests)
    return run_blocks(session, runs, forecaster, batches_per_block)


def generate_batch(
    session: InferenceSession,
    prompts: Sequence[Prompt],
    forecaster: Forecaster,
    *,
    max_new_tokens: Sequence[int],
    stop_ids: Collection[int],
    sampler: Sampler | None = None,
    batch_size: int | None = None,
) -> list[Generated]:
    """Answers one batch of prompts; arguments as `BatchRequest`, `Choosing` and `generate_batches` have them."""
    request = BatchRequest(prompts, max_new_tokens, range(len(prompts)))
    choosing = Choosing(stop_ids, sampler or Sampler())
    return next(generate_batches(session, [request], forecaster, choosing, batch_size=batch_size))
