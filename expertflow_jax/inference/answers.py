"""Answers of batches as text, shown while they come."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from expertflow_jax.inference.forecasting import Forecaster
from expertflow_jax.inference.generation import BatchRequest, Choosing, generate_batches
from expertflow_jax.inference.loading import LoadedModel
from expertflow_jax.inference.sampling import Sampler
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.inference.text_stream import TextStream
from expertflow_jax.processing import end_token_ids
from expertflow_jax.processing.batching import Prompt


@dataclasses.dataclass(frozen=True)
class Answer:
    """One generated answer.

    Attributes:
      text: decoded, special tokens left out.
      token_ids: without the stop token; with those of a stop text.
      finished: met a stop token or text rather than `max_new_tokens`.
    """

    text: str
    token_ids: list[int]
    finished: bool


@dataclasses.dataclass(frozen=True)
class Wishes:
    """How prompts are to be answered; see `OffloadedModel.generate`.

    Attributes:
      new_tokens: of each answer at most.
      sampler: chooses them.
      stops: texts that end an answer.
      show: called with (prompt number, text so far); None: nobody watches.
      check: called for each token, to end the call by an exception.
    """

    new_tokens: int
    sampler: Sampler
    stops: Sequence[str]
    show: Callable[[int, str], Any] | None
    check: Callable[[], None]


def answer_batches(
    model: LoadedModel,
    session: InferenceSession,
    forecaster: Forecaster,
    batches: Sequence[Sequence[Prompt]],
    wishes: Wishes,
    batches_per_block: int = 1,
) -> Iterator[Answer]:
    """Answers batches of prompts, several batches at once; yields the answers in the order of the prompts."""
    processor = model.processor
    texts: dict[int, TextStream] = {}  # by number of the prompt, where somebody reads along

    def text(number: int) -> TextStream:
        assert processor is not None, "texts are read along with a tokenizer"
        return texts.setdefault(number, TextStream(processor.decode, wishes.stops, processor.is_byte))

    def show(number: int) -> None:
        if wishes.show is not None:
            wishes.show(number, texts[number].text)

    def on_token(number: int, token: int) -> bool:
        wishes.check()
        if not reads_along:
            return False
        text(number).push(token)
        show(number)
        return texts[number].stopped

    def on_end(number: int) -> None:
        if reads_along and text(number).finish():
            show(number)

    reads_along = processor is not None and (wishes.stops or wishes.show is not None)
    stop_ids = processor.eos_token_ids if processor is not None else end_token_ids(model.path)
    generated = generate_batches(
        session,
        _requests(batches, wishes.new_tokens),
        forecaster,
        Choosing(stop_ids, wishes.sampler, on_token, on_end),
        batches_per_block=batches_per_block,
    )
    for number, answer in enumerate(itertools.chain.from_iterable(generated)):
        if reads_along:
            stream = texts.pop(number)
            yield Answer(stream.text, answer.token_ids, answer.finished or stream.stopped)
        else:
            decoded = "" if processor is None else processor.decode(answer.token_ids)
            yield Answer(decoded, answer.token_ids, answer.finished)


def _requests(batches: Sequence[Sequence[Prompt]], new_tokens: int) -> Iterator[BatchRequest]:
    first = 0
    for prompts in batches:
        yield BatchRequest(prompts, [new_tokens] * len(prompts), range(first, first + len(prompts)))
        first += len(prompts)
