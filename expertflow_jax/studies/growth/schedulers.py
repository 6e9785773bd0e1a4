"""What the token schedulers cost over the sequences in the window, beside the time of running what they schedule.

The time scheduled is simulated: a few batches, each a prefill and its decode steps, are replayed losslessly through the
engine on the stated machine (policy `expertflow`, forecasts of a trained predictor's skill), and the mean of a batch is
multiplied by the batches of the window. Axes: W sequences of the window, L MoE layers, E experts.
"""

import dataclasses
import time

import numpy as np

from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.offload.variant import Variant, new_engine
from expertflow_jax.scheduling import make_scheduler
from expertflow_jax.simulation.host_cost import HORIZON, SKILL
from expertflow_jax.simulation.machines import Machine
from expertflow_jax.simulation.replay import replay
from expertflow_jax.simulation.synthetic import noisy_horizons, synthetic_steps

TOPICS = 32  # of the made-up sequences


@dataclasses.dataclass(frozen=True)
class Workload:
    """What the scheduled sequences are.

    Attributes:
      name: for tables.
      machine: where they run.
      num_layers, num_experts, top_k: L, E, K.
      prompt_tokens, new_tokens: of each sequence.
      batch_size: sequences that run together.
      cache_fraction: slots / experts.
    """

    name: str
    machine: Machine
    num_layers: int
    num_experts: int
    top_k: int
    prompt_tokens: int
    new_tokens: int
    batch_size: int
    cache_fraction: float


def batch_seconds(work: Workload, seed: int, batches: int = 2) -> float:
    """Simulated seconds of one batch, mean of `batches` after one that warms the cache."""
    steps = synthetic_steps(
        seed,
        num_layers=work.num_layers,
        num_experts=work.num_experts,
        top_k=work.top_k,
        batches=batches + 1,
        batch_size=work.batch_size,
        prompt_tokens=work.prompt_tokens,
        decode_steps=work.new_tokens,
    )
    steps = noisy_horizons(steps, seed + 1, SKILL, look_ahead=HORIZON)
    sizes = ExpertSizes(work.num_layers, work.num_experts, work.machine.expert_bytes)
    slots = int(work.cache_fraction * work.num_layers * work.num_experts)
    engine = new_engine(sizes, Variant.of("expertflow"), slots, work.machine.link)
    first = len(steps) // (batches + 1)
    replay(engine, steps[:first], work.machine.costs)
    engine.reset_stats()
    return replay(engine, steps[first:], work.machine.costs)["wall_seconds"] / batches


def made_up_signatures(work: Workload, window: int, seed: int) -> np.ndarray:
    """float32 [W, L, E]: forecasts of sequences of `TOPICS` topics, four times K experts likely in each layer."""
    random = np.random.default_rng(seed)
    shape, likely = (work.num_layers, work.num_experts), min(4 * work.top_k, work.num_experts - 1)
    of_topic = 2 * random.standard_normal((TOPICS, *shape), np.float32)
    scores = of_topic[random.integers(TOPICS, size=window)]
    scores += np.float32(0.7) * random.standard_normal(scores.shape, np.float32)
    scores -= np.partition(scores, -likely, axis=-1)[..., -likely, None]
    return 1 / (1 + np.exp(-scores))


def planning_seconds(name: str, work: Workload, signatures: np.ndarray, repeats: int) -> float:
    """CPU seconds of planning the window once, least of repeats; long ones are not repeated."""
    scheduler, spent = make_scheduler(name, batch_size=work.batch_size), []
    for _ in range(repeats):
        begin = time.thread_time()
        scheduler.plan(signatures)
        spent.append(time.thread_time() - begin)
        if sum(spent) > 1.0:
            break
    return min(spent)
