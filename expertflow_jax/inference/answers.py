"""Answers of one batch as text, shown while they come."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from expertflow_jax.inference.forecasting import Forecaster
from expertflow_jax.inference.generation import generate_batch
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


def answer_batch(
    model: LoadedModel,
    session: InferenceSession,
    forecaster: Forecaster,
    prompts: Sequence[Prompt],
    first: int,
    wishes: Wishes,
) -> list[Answer]:
    """Answers one batch, whose prompts are numbered from `first`."""
    processor = model.processor
    texts: list[TextStream] = []
    if processor is not None and (wishes.stops or wishes.show is not None):
        texts = [TextStream(processor.decode, wishes.stops, processor.is_byte) for _ in prompts]

    def show(row: int) -> None:
        if wishes.show is not None:
            wishes.show(first + row, texts[row].text)

    def on_token(row: int, token: int) -> bool:
        wishes.check()
        if texts:
            texts[row].push(token)
            show(row)
        return bool(texts) and texts[row].stopped

    def on_end(row: int) -> None:
        if texts and texts[row].finish():
            show(row)

    generated = generate_batch(
        session,
        prompts,
        forecaster,
        max_new_tokens=[wishes.new_tokens] * len(prompts),
        stop_ids=processor.eos_token_ids if processor is not None else end_token_ids(model.path),
        sampler=wishes.sampler,
        numbers=range(first, first + len(prompts)),
        on_token=on_token,
        on_end=on_end,
    )
    if texts:
        pairs = zip(texts, generated, strict=True)
        return [Answer(text.text, g.token_ids, g.finished or text.stopped) for text, g in pairs]
    decode = processor.decode if processor is not None else lambda ids: ""
    return [Answer(decode(g.token_ids), g.token_ids, g.finished) for g in generated]
