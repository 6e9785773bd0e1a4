"""Other ways to build the engine, replayed beside it on the virtual clock (docs/engine.md, "Beyond the paper").

Each variant is a policy, a trace and a way to replay; the engine, the clock and the link are the real ones.
Axes: H steps of the horizon, L MoE layers, E experts. A key is layer * E + expert.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.policies.cache_moe import CacheMoE, split_evenly
from expertflow_jax.offload.policies.expertflow import ExpertFlow
from expertflow_jax.offload.policies.on_demand import OnDemand
from expertflow_jax.offload.slots import KEPT, SlotPool
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.offload.variant import Variant, new_engine
from expertflow_jax.simulation.machines import Machine
from expertflow_jax.simulation.replay import ReplayStep, replay_step, true_horizons


class PoolPerLayer(ExpertFlow):
    """Every layer keeps its share of the slots, as in Cache-MoE; prefetch and eviction by value within it."""

    def attach(self, slots: SlotPool) -> None:
        super().attach(slots)
        self._homes = split_evenly(slots.num_slots, slots.num_layers)

    def home(self, layer: int) -> slice:
        return self._homes[layer]

    def next_prefetch(self) -> int:
        """The highest value that beats the lowest of its own layer: the highest of all may have to stay away."""
        best, highest, order = -1, 0.0, self.order
        for layer in range(self.num_layers):
            absent = self.slots.slot_of.reshape(order.open.shape)[layer] < 0
            values = np.where(order.open[layer] & order.likely[layer] & absent, order.values(layer), -1.0)
            expert = int(values.argmax())
            key = layer * self.num_experts + expert
            if values[expert] > highest and self.victim(key, False) >= 0:
                best, highest = key, float(values[expert])
        return best

    def victim(self, key: int, urgent: bool) -> int:
        layer, expert = divmod(key, self.num_experts)
        slots = self.slots.slot_of.reshape(self.order.open.shape)[layer]
        values = self.order.values(layer)
        free = np.where(self.slots.order[slots] != KEPT, values, np.inf)
        lowest = free.min()
        if lowest == np.inf or (not urgent and lowest * self.tuning.gain >= values[expert]):
            return -1
        tied = slots[free == lowest]
        return int(tied[self.slots.order[tied].argmin()])


class Reordered(ExpertFlow):
    """Prefetches what `ExpertFlow` would, none other, but in another order; evicts alike."""

    layers_per_transfer = 1.0

    def score(self, chance: np.ndarray, distance: np.ndarray) -> np.ndarray:
        """The highest goes first. Args: chance: float [L, E], of the next use, `distance` int [L, 1] layers on."""
        raise TypeError(f"{type(self).__name__} does not say what goes first")

    def next_prefetch(self) -> int:
        lowest, slots = self.order.lowest_free()
        if not len(slots):
            return -1
        order, first = self.order, self.first
        values = np.stack([order.values(layer) for layer in range(self.num_layers)])
        absent = self.slots.slot_of.reshape(values.shape) < 0
        wanted = order.open & order.likely & absent & (values > lowest * self.tuning.gain)
        ahead = np.arange(self.num_layers)[:, None] - order.asked
        later = first[1] if len(first) > 1 else np.zeros_like(values)
        chance = np.where(ahead > 0, first[0], later)
        scores = np.where(wanted, self.score(chance, np.where(ahead > 0, ahead, ahead + self.num_layers)), -np.inf)
        key = int(scores.argmax())
        return key if scores.reshape(-1)[key] > -np.inf else -1


class NearestFirst(Reordered):
    """The nearest layer first, within it by probability."""

    def score(self, chance: np.ndarray, distance: np.ndarray) -> np.ndarray:
        return chance - distance


class LikeliestFirst(Reordered):
    """By probability, whenever the use is."""

    def score(self, chance: np.ndarray, distance: np.ndarray) -> np.ndarray:
        return chance - 1e-6 * distance


class StallSavedFirst(Reordered):
    """By the stall that it is expected to save: P(use) x (the transfer, or the time left if that is less).

    All experts have the same bytes, so this is the order per byte, too.
    """

    def score(self, chance: np.ndarray, distance: np.ndarray) -> np.ndarray:
        return chance * np.minimum(distance, self.layers_per_transfer)


@dataclasses.dataclass(frozen=True)
class Build:
    """One way to run.

    Attributes:
      name, what: for tables.
      policy: a class; attributes of it are set by `run`.
      parts: pieces in which an expert travels and is computed.
      fewer_slots: slots given up, for staging buffers.
      after_all: nothing is computed before all experts of a layer are there.
      forecast: "each" step's own; "one" without what follows; "batch" without the queue; "repeated" with the running
        token's forecast in place of the next one's; "once" (after the prompt, for all decode steps); "step", "next" and
        "truth" are what really happens in the running step, the next one too, and to the end.
    """

    name: str
    what: str
    policy: type[CachePolicy] = ExpertFlow
    parts: int = 1
    fewer_slots: int = 0
    after_all: bool = False
    forecast: str = "each"


BASE = Build("as built", "")
VARIANTS = (
    BASE,
    Build("halves", "an expert travels and is computed in two halves", parts=2),
    Build("quarters", "in four", parts=4),
    Build("commit on arrival", "two slots are staging buffers instead (the link's window)", fewer_slots=2),
    Build("hits wait for misses", "nothing is computed before all of a layer's experts have come", after_all=True),
    Build("nearest layer first", "prefetch in the order of layers, within one by probability", NearestFirst),
    Build("likeliest first", "prefetch by probability", LikeliestFirst),
    Build("stall saved per byte", "prefetch by probability x the stall that it can still save", StallSavedFirst),
    Build("pool per layer", "each layer keeps its share of the slots", PoolPerLayer),
    Build("running step only", "the forecast ends with the running step", forecast="one"),
    Build("queue not seen", "nothing is known of the next batch's prompts", forecast="batch"),
    Build("token repeated", "the running token's forecast stands for the next one's, too", forecast="repeated"),
    Build("forecast once", "decode steps keep the forecast made after the prompt", forecast="once"),
    Build("running step known", "the truth for the running step, then the forecast", forecast="step"),
    Build("next step known", "the truth for the running step and the next", forecast="next"),
    Build("all known", "the truth to the end", forecast="truth"),
    Build("LRU, shared", "`on_demand`: no forecast", OnDemand),
    Build("LRU, pool per layer", "`cache_moe`: no forecast", CacheMoE),
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Simulated.

    Attributes:
      seconds, hit_rate, bytes_transferred: of the whole trace.
      steps_without_miss, layers_without_miss: shares of decode steps and of their layer-steps whose experts were all
        in slots when asked for.
      layers_until_miss: layers of a decode step that run before the first that misses one, mean over steps.
    """

    seconds: float
    hit_rate: float
    bytes_transferred: int
    steps_without_miss: float
    layers_without_miss: float
    layers_until_miss: float


def run(variant: Build, steps: Sequence[ReplayStep], machine: Machine, cache_fraction: float, batch: int) -> Outcome:
    """Replays the steps. Args: batch: sequences; steps of as many tokens are decode steps."""
    if variant.parts > 1:
        steps, machine = _in_parts(steps, machine, variant.parts)
    steps = _with_forecast(steps, variant.forecast, batch)
    layers, experts = steps[0].rows.shape
    policy = variant.policy()
    if isinstance(policy, Reordered):
        used = float(np.mean([step.needed.sum() for step in steps if step.tokens == batch])) / layers
        layer = machine.costs.attend_seconds(batch) + machine.costs.experts_seconds([1] * round(used))
        policy.layers_per_transfer = machine.link.seconds_on_link(machine.expert_bytes) / layer
    slots = max(1, int(cache_fraction * layers * experts) - variant.fewer_slots)
    sizes = ExpertSizes(layers, experts, machine.expert_bytes)
    engine = new_engine(sizes, Variant.of(policy), slots, machine.link)
    misses_NL = np.array([_misses(engine, step, machine, variant.after_all) for step in steps])
    stats = engine.stats()
    clean_NL = misses_NL[[step.tokens == batch for step in steps]] == 0
    until = np.where(clean_NL.all(1), layers, clean_NL.argmin(1))
    return Outcome(
        stats["wall_seconds"],
        stats["hit_rate"],
        stats["bytes_transferred"],
        float(clean_NL.all(1).mean()),
        float(clean_NL.mean()),
        float(until.mean()),
    )


def _misses(engine: ExpertCacheEngine, step: ReplayStep, machine: Machine, after_all: bool) -> list[int]:
    """Replays a step. Returns how many experts each layer asked for that were not in slots."""
    misses: list[int] = []
    hits = engine.stats()["hits"]

    def on_layer(_: int, asked: int) -> None:
        nonlocal hits
        before, hits = hits, engine.stats()["hits"]
        misses.append(asked - (hits - before))

    replay_step(engine, step, machine.costs, on_layer=on_layer, at_once=after_all)
    return misses


def _in_parts(steps: Sequence[ReplayStep], machine: Machine, parts: int) -> tuple[list[ReplayStep], Machine]:
    """Every expert becomes `parts` neighbours, used together, of that fraction of its bytes and its compute."""
    costs = machine.costs
    experts = dataclasses.replace(costs.experts, per_unit=costs.experts.per_unit / parts)
    costs = dataclasses.replace(costs, experts=experts, per_expert=costs.per_expert / parts)
    split = [
        dataclasses.replace(
            step,
            rows=np.repeat(step.rows, parts, axis=1),
            horizon=None if step.horizon is None else np.repeat(step.horizon, parts, axis=2),
        )
        for step in steps
    ]
    return split, dataclasses.replace(machine, costs=costs, expert_bytes=machine.expert_bytes // parts)


def _with_forecast(steps: Sequence[ReplayStep], which: str, batch: int) -> list[ReplayStep]:
    if which == "each":
        return list(steps)
    if which == "truth":
        return true_horizons(steps, len(steps))
    changed, first = [], None
    following = [*steps[1:], None]
    for step, after in zip(steps, following, strict=True):
        horizon = step.horizon
        assert horizon is not None, "the recorded steps carry forecasts"
        own = 1 if after is None or after.tokens != batch else 2  # rows about this batch, the queue's follow
        decodes = step.tokens == batch
        if which == "one":
            horizon = horizon[:1]
        elif which == "batch":
            horizon = horizon[:own]
        elif which == "repeated" and decodes:
            horizon = np.concatenate([horizon[:1]] * own + [horizon[own:]])
        elif which == "step":
            horizon = np.concatenate([step.needed[None].astype(np.float32), horizon[1:]])
        elif which == "next":
            coming = np.zeros_like(step.needed) if after is None else after.needed
            horizon = np.stack([step.needed, coming]).astype(np.float32)
        elif which == "once" and decodes and first is not None:
            horizon = np.concatenate([first[None]] * own + [horizon[own:]])
        elif which == "once":
            first = horizon[1]
        changed.append(dataclasses.replace(step, horizon=horizon))
    return changed
