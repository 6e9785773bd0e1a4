"""How much faster one policy is than another on recorded routing, under two protocols.

*ours*: the predictor forecasts freely and its time counts; prefill and decode count; a hit is there when asked for.
*paper*: what the released code of ExpertFlow measures (github.com/marsggbo/ExpertFlow): answers are teacher-forced and
the path is the true one, known at no cost; the clock starts with the first decode step; accesses are counted after the
prefetch, so that what is still on its way is a hit.
Intervals are over batches, paired: each batch takes both policies so long, and the logarithms of the ratios have a t
distribution. Axes: L MoE layers, E experts, N tokens of a step.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.offload.variant import Variant, new_engine
from expertflow_jax.simulation.costs import Line
from expertflow_jax.simulation.gpus import LayerSize
from expertflow_jax.simulation.machines import Machine, gpu_machine
from expertflow_jax.simulation.replay import ReplayStep, replay_step, true_horizons

PROTOCOLS = ("ours", "paper")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a policy did with a trace.

    Attributes:
      seconds: of each batch, as far as the protocol's clock runs.
      hit_rate: hits as the protocol counts them / requests.
    """

    seconds: list[float]
    hit_rate: float
    bytes_transferred: int


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A speed-up with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def machine_with_predictor(gpu: str, layer: LayerSize, predictor_bytes: int) -> Machine:
    """`gpu_machine` on which a pre-gate stands in the router's place and costs nothing more."""
    machine = gpu_machine(gpu, layer, predictor_bytes)
    return dataclasses.replace(machine, costs=dataclasses.replace(machine.costs, route=Line(0.0, 0.0)))


def gated(step: ReplayStep) -> ReplayStep:
    """The step with a gate before every layer that names exactly what the layer chooses, as a pre-gate does that
    decides it: `hidden_probs` [L, N, E]."""
    layers, experts = step.rows.shape
    probs_LNE = np.zeros((layers, step.tokens, experts), np.float32)
    for probs_NE, rows_E in zip(probs_LNE, step.rows, strict=True):
        ids = np.repeat(np.arange(experts), rows_E)  # dealt out to the tokens in turn
        probs_NE[np.arange(len(ids)) % step.tokens, ids] = 1.0
    return dataclasses.replace(step, hidden_probs=probs_LNE)


def play(machine: Machine, slots: int, policy: str, steps: Sequence[ReplayStep], protocol: str) -> Outcome:
    """Replays the steps of all batches from a warm cache. Each batch begins with a step that `begins`."""
    layers, experts = steps[0].rows.shape
    variant, costs = Variant.of(policy), machine.costs
    if protocol == "paper":
        steps, costs = true_horizons(steps), dataclasses.replace(costs, predictor=Line(0.0, 0.0))
    if variant.forecast == "hidden":
        steps = [gated(step) for step in steps]
    seconds: list[float] = []
    hits = requests = moved = 0
    with new_engine(ExpertSizes(layers, experts, machine.expert_bytes), variant, slots, machine.link) as engine:
        for step in steps:
            engine.reset_stats()
            replay_step(engine, step, costs)
            if step.begins:
                seconds.append(0.0)
            if step.begins and protocol == "paper":
                continue
            done = engine.stats()
            seconds[-1] += done["wall_seconds"]
            hits += done["hits"] + (done["late"] if protocol == "paper" else 0)
            requests += done["hits"] + done["late"] + done["misses"]
            moved += done["bytes_transferred"]
    return Outcome(seconds, hits / requests if requests else 1.0, moved)


def speed_up(slower: Sequence[float], faster: Sequence[float]) -> Ratio:
    """How many times the second takes less time: seconds per batch of both, two batches at least."""
    logarithms = np.log(np.divide(slower, faster))
    half = stats.t.ppf(0.975, len(logarithms) - 1) * logarithms.std(ddof=1) / np.sqrt(len(logarithms))
    middle = logarithms.mean()
    return Ratio(*(float(np.exp(x)) for x in (middle, middle - half, middle + half)))
