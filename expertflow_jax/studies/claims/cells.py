"""The cells of a speed claim: a policy under a protocol on a published shape, and the recorded steps that it replays.

Axes: N questions, T tokens, L MoE layers, E experts, K top-k.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from expertflow_jax.inference.loading import LoadedModel
from expertflow_jax.offload.policies import make_policy
from expertflow_jax.predictor import Predictor
from expertflow_jax.predictor.forecast import step_forecast
from expertflow_jax.scheduling import Scheduler
from expertflow_jax.simulation.replay import ReplayStep
from expertflow_jax.studies.claims.speed import Outcome, machine_with_predictor, play
from expertflow_jax.workloads.recorded import record_questions, recorded_steps
from expertflow_jax.workloads.routes import forecasts
from expertflow_jax.workloads.setups import predicted_uses
from expertflow_jax.workloads.shapes import find_shape


@dataclasses.dataclass(frozen=True)
class SpeedCell:
    """One policy under one protocol, on a shape with so many slots per layer."""

    claim: str
    shape: str
    num_layers: int
    batch_size: int
    cache_size: int
    protocol: str
    policy: str

    @property
    def sizes(self) -> tuple[int, int, int]:
        """L, E, K."""
        full = find_shape(self.shape).full
        return self.num_layers, full.num_experts, full.top_k

    @property
    def slots(self) -> int:
        """As the cache size says, or the least that the policy takes."""
        least = make_policy(self.policy).least_slots(*self.sizes[:2])
        return max(self.cache_size * self.num_layers, least)


class Traces:
    """Recorded questions as steps, of one shape and batch size at a time: cells of one trace come together."""

    def __init__(self, model: LoadedModel, predictor: Predictor, sequences: int, new_tokens: int, seed: int):
        self._predictor = predictor
        self._recording = record_questions(model, sequences, new_tokens, seed)
        self._steps_of_batch = new_tokens + 1
        self._latest: tuple[tuple[tuple[int, int, int] | None, int], list[ReplayStep]] | None = None

    def scheduled(self, scheduler: Scheduler, shape: tuple[int, int, int]) -> list[ReplayStep]:
        """The steps of the batches that a token scheduler forms of all questions, by the predictor's forecasts of their
        prompts. Args: shape: L, E, K."""
        recording = self._recording
        use_NxTxLxE = forecasts(predicted_uses(self._predictor, recording)[0], *shape)
        lengths = recording.prompt_lengths
        signatures = [step_forecast(use_NxTxLxE[n : n + 1], lengths[n : n + 1]) for n in range(len(lengths))]
        order = np.concatenate(scheduler.plan(np.stack(signatures)))
        return self._marked(recorded_steps(recording.take(order), self._predictor, shape, scheduler.batch_size))

    def steps(self, shape: tuple[int, int, int] | None, batch_size: int) -> list[ReplayStep]:
        """Of all batches. Args: shape: L, E, K; None: the trained model's own."""
        if self._latest is None or self._latest[0] != (shape, batch_size):
            steps = self._marked(recorded_steps(self._recording, self._predictor, shape, batch_size))
            self._latest = (shape, batch_size), steps
        return self._latest[1]

    def _marked(self, steps: Sequence[ReplayStep]) -> list[ReplayStep]:
        """Each batch begins with its prompts."""
        return [dataclasses.replace(step, begins=n % self._steps_of_batch == 0) for n, step in enumerate(steps)]

    def play(self, cell: SpeedCell, gpu: str) -> Outcome:
        """What the cell's policy does with its trace on the GPU."""
        return self.play_steps(cell, gpu, self.steps(cell.sizes, cell.batch_size))

    def play_steps(self, cell: SpeedCell, gpu: str, steps: Sequence[ReplayStep]) -> Outcome:
        """The same with other steps of the cell's shape."""
        machine = machine_with_predictor(gpu, find_shape(cell.shape).full, self._predictor.nbytes)
        return play(machine, cell.slots, cell.policy, steps, cell.protocol)
