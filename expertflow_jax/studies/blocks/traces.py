"""Recorded routing as batches of a full-size model; each is carried over once, while cells of one kind follow."""

from collections.abc import Sequence

import ml_collections

from expertflow_jax.inference.served import load_with_predictor
from expertflow_jax.studies.blocks.memory import sizes_of
from expertflow_jax.workloads.recorded import RecordedStep, record_questions, recorded_batches


class Traces:
    """Records the trained model's routing when the first batches are asked for.

    Raises:
      InputError: no such model or predictor, or too few recorded answers are as long as the config asks.
    """

    def __init__(self, config: ml_collections.ConfigDict, sequences: int):
        """Args: sequences: the most that any window has."""
        self._config = config
        model, self._predictor = load_with_predictor(config.model, config.predictor)
        self._recording = record_questions(model, sequences, max(1, config.new_tokens), config.seed)
        self._latest: tuple[tuple[str, int, int], list[list[RecordedStep]]] | None = None

    def batches(self, model: str, sequences: int, prompt_tokens: int, new_tokens: int) -> list[Sequence[RecordedStep]]:
        """The steps of each batch of the window: its prompts, then `new_tokens` decode steps."""
        place = model, sequences, prompt_tokens
        if self._latest is None or self._latest[0] != place:
            text = sizes_of(self._config.models[model]).config.text
            shape = len(text.moe_layers), text.num_experts, text.num_experts_per_tok
            recording = self._recording.first(sequences)
            size = self._config.batch_size
            self._latest = place, recorded_batches(recording, self._predictor, shape, size, prompt_tokens or None)
        return [batch[: 1 + new_tokens] for batch in self._latest[1]]
