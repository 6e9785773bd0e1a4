"""What a miss policy is told and what it decides: which experts a layer runs, waits for, or does without. Pure NumPy.

Of every expert that the router chose and that has not arrived, a policy says one of three things: wait for it (its id
stays), do without it (its id is -1), or run another one in its place (another id). Weights follow the models' own rule
that they come from the router's probabilities of the experts that run and keep the token's total: cache-conditional
routing (2412.00099) changes only the choice and leaves weights to the router; BuddyMoE (2511.10054) runs a cached
expert in the place of the missing one. So a token whose experts are all as chosen is left untouched bit for bit; any
other one has its weights rescaled to its original total over what runs (for models with renormalised top-k that total
is 1), and a token left with nothing keeps only its residual stream.
Axes: N tokens, K top-k, E experts.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float32, Int32

from expertflow_jax.errors import InputError
from expertflow_jax.names import find

PHASES = ("both", "decode", "prefill")
TOKENS = ("both", "image", "text")
LAYERS = ("all", "early", "middle", "late")

Ids = Int32[np.ndarray, "N K"]
Weights = Float32[np.ndarray, "N K"]


@dataclasses.dataclass(frozen=True)
class LayerStep:
    """One MoE layer in one step, as its router wants it; of a super-step, the tokens of all members.

    Attributes:
      layer, num_layers: MoE layers only.
      expert_ids: the router's choice, likeliest first, -1 where there is none.
      router_probs: of all experts.
      usable: experts that have arrived.
      image: tokens of an image.
      prefill: tokens of a prompt that is read now; the others are decoded.
    """

    layer: int
    num_layers: int
    expert_ids: Ids
    weights: Weights
    router_probs: Float32[np.ndarray, "N E"]
    usable: Bool[np.ndarray, " E"]
    image: Bool[np.ndarray, " N"]
    prefill: Bool[np.ndarray, " N"]

    def as_chosen(self) -> "Decision":
        """Nothing is lost: compute waits for all."""
        return Decision(self.expert_ids, self.weights, as_chosen=True)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What runs. Experts among `expert_ids` that have not arrived are waited for.

    Attributes:
      expert_ids: -1 with weight 0 where nothing runs.
      as_chosen: what the router chose, all of it, so that the layer-step is served as `wait` serves it.
      quantized: experts of which a quantised copy will do, if the whole one is not there; None: of none.
      deferred: experts whose outputs are added behind the next MoE layer, so that they may come until then; None: none.
        Never in the last layer.
    """

    expert_ids: Ids
    weights: Weights
    as_chosen: bool = False
    quantized: Bool[np.ndarray, " E"] | None = None
    deferred: Bool[np.ndarray, " E"] | None = None


class MissPolicy:
    """How misses are met. To add one, subclass this; it can be named as "package.module:Class" at once.

    Override `resolve`, or `decide` if tokens are not decided about one by one or more must be known.

    Attributes:
      name: as in configs and results.
      lossless: whether outputs equal the resident run's bit for bit.
      fetches_dropped: experts that were done without travel later, when the link is free, so that the cache adapts.
      phase, tokens, layers: where losses are allowed, of `PHASES`, `TOKENS` and `LAYERS`; elsewhere compute waits.
    """

    name = ""
    lossless = False
    fetches_dropped = True
    phase = "both"
    tokens = "both"
    layers = "all"

    def __init__(self, phase: str = "both", tokens: str = "both", layers: str = "all"):
        """
        Raises:
          InputError: a word that is none of those.
        """
        self.phase = find(f"miss policy {self.name}: phase", phase, PHASES)
        self.tokens = find(f"miss policy {self.name}: tokens", tokens, TOKENS)
        self.layers = find(f"miss policy {self.name}: layers", layers, LAYERS)

    @property
    def copies(self) -> str:
        """ "int8" or "int4" if misses may be served from quantised copies of the experts; "": there are none."""
        return ""

    @property
    def options(self) -> str:
        """All options with their values, as a call writes them; "" where there are none."""
        public = {name: value for name, value in sorted(vars(self).items()) if not name.startswith("_")}
        return ", ".join(f"{name}={value!r}" for name, value in public.items())

    def decide(self, step: LayerStep) -> Decision:
        """What runs: `resolve` where losses are allowed, what the router chose elsewhere."""
        allowed = self.allowed(step)
        if not allowed.any():
            return step.as_chosen()
        ids, weights = self.resolve(step.expert_ids, step.weights, step.router_probs, step.usable)
        if not allowed.all():
            ids = np.where(allowed[:, None], ids, step.expert_ids)
            weights = np.where(allowed[:, None], weights, step.weights)
        return Decision(ids, weights)

    def resolve(
        self, expert_ids: Ids, weights: Weights, router_probs: Float32[np.ndarray, "N E"], usable: Bool[np.ndarray, "E"]
    ) -> tuple[Ids, Weights]:
        """The experts to run instead, token by token; arguments as of `LayerStep`, result as of `Decision`."""
        raise NotImplementedError(f"{type(self).__name__} does not say what runs instead")

    def allowed(self, step: LayerStep) -> Bool[np.ndarray, " N"]:
        """Tokens that may lose something here."""
        allowed = np.full(len(step.expert_ids), self.layers in ("all", third(step.layer, step.num_layers)))
        if self.phase != "both":
            allowed &= step.prefill == (self.phase == "prefill")
        if self.tokens != "both":
            allowed &= step.image == (self.tokens == "image")
        return allowed


def third(layer: int, num_layers: int) -> str:
    """Whether MoE layer `layer` is in the "early", "middle" or "late" third."""
    return LAYERS[1 + 3 * layer // num_layers]


def arrived(expert_ids: Ids, usable: Bool[np.ndarray, "E"]) -> Bool[np.ndarray, "N K"]:
    """Which choices are of experts that have arrived."""
    return (expert_ids >= 0) & usable[np.maximum(expert_ids, 0)]


def rescale(weights: Weights, parts: Weights, changed: Bool[np.ndarray, " N"]) -> Weights:
    """`weights` where not `changed`; elsewhere `parts` scaled to the total of `weights`."""
    total = weights.sum(axis=1, keepdims=True, dtype=np.float32)
    sums = parts.sum(axis=1, keepdims=True, dtype=np.float32)
    scale = np.divide(total, sums, out=np.zeros_like(total), where=sums > 0)
    return np.where(changed[:, None], parts * scale, weights).astype(weights.dtype)


def number_option(policy: str, name: str, value: object, high: float = math.inf, low: float = 0.0) -> float:
    """`value`, if it is a number from `low` to `high`; raises InputError otherwise."""
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        return value
    bounds = f"from {low:g} up" if high == math.inf else f"from {low:g} to {high:g}"
    raise InputError(f"miss policy {policy}: {name}={value!r}; want a number {bounds}")


def count_option(policy: str, name: str, value: object, low: int) -> int:
    """`value`, if it is a whole number from `low` up; raises InputError otherwise."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= low:
        return value
    raise InputError(f"miss policy {policy}: {name}={value!r}; want a whole number from {low} up")


def without(step: LayerStep, dropped: Bool[np.ndarray, "N K"]) -> Decision:
    """The router's choices but for the dropped ones; the others of such a token take over their weight."""
    if not dropped.any():
        return step.as_chosen()
    ids = np.where(dropped, -1, step.expert_ids).astype(step.expert_ids.dtype)
    runs = np.where(dropped, 0, step.weights)
    return Decision(ids, rescale(step.weights, runs, dropped.any(axis=1)))


def shares(weights: Weights) -> Weights:
    """Each choice's share of its token's weight; zeros for a token without any."""
    total = weights.sum(axis=1, keepdims=True, dtype=np.float32)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
