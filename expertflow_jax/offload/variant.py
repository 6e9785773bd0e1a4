"""What studies compare, a cache policy with where its forecast comes from, and the one place that builds an engine.

S slots.
"""

import dataclasses
import re
from typing import get_args

from expertflow_jax import names
from expertflow_jax.errors import InputError
from expertflow_jax.models.device_form import DeviceForm
from expertflow_jax.offload.clock import Clock
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.offload.policies import make_policy
from expertflow_jax.offload.policies.base import CachePolicy, Forecast
from expertflow_jax.offload.policies.resident import Resident
from expertflow_jax.offload.slots import SlotPool
from expertflow_jax.offload.store import HostTier

PolicyLike = str | type[CachePolicy] | CachePolicy
FORECASTS: tuple[Forecast, ...] = get_args(Forecast)
_HORIZONS: tuple[Forecast, ...] = ("predictor", "truth")  # either serves a policy that reads horizons


@dataclasses.dataclass(frozen=True)
class Variant:
    """A policy with where its forecast comes from.

    Attributes:
      policy: a name, with options if wanted; "package.module:Class"; a class; or an object that one engine may use.
      forecast: see `CachePolicy.forecast`.
    """

    policy: PolicyLike
    forecast: Forecast = "none"

    @classmethod
    def of(cls, what: "PolicyLike | Variant") -> "Variant":
        """The variant that a config or a caller means; without a forecast in brackets, the policy's own.

        "expertflow", "expertflow(truth)", "expertflow(gain=1.2)", "expertflow(truth, gain=1.2)", "module:Class".

        Raises:
          InputError: no such policy, option or forecast, or one that the policy cannot read.
        """
        if isinstance(what, Variant):
            return what
        policy, forecast = _split(what) if isinstance(what, str) else (what, "")
        own = make_policy(policy).forecast
        if not forecast:
            return cls(policy, own)
        wanted = names.find(f"policy {what!r}: forecast", forecast, FORECASTS)
        readable: tuple[Forecast, ...] = ("none", *_HORIZONS) if own in _HORIZONS else ("none", own)
        for known in readable:
            if known == wanted:
                return cls(policy, known)
        raise InputError(f"policy {what!r}: it cannot read this forecast; write {policy} alone")

    @property
    def label(self) -> str:
        """As in tables and configs: the forecast is named where it is not the policy's own."""
        policy = make_policy(self.policy)
        text = self.policy if isinstance(self.policy, str) else policy.name or type(policy).__name__
        if self.forecast == policy.forecast:
            return text
        name, bracket, options = text.partition("(")
        return f"{name}({self.forecast}, {options}" if bracket else f"{name}({self.forecast})"

    @property
    def name(self) -> str:
        """The policy's, without options."""
        return self.policy.partition("(")[0] if isinstance(self.policy, str) else self.label

    @property
    def whole(self) -> bool:
        """Whether every expert has a slot, whatever the cache size."""
        return isinstance(make_policy(self.policy), Resident)

    def check_slots(self, num_slots: int, store: HostTier) -> None:
        """Raises InputError if the policy refuses so few slots for these experts."""
        if not self.whole:
            pool = SlotPool(num_slots, store.num_layers, store.num_experts, store.expert_bytes)
            make_policy(self.policy).attach(pool)

    @property
    def lossless(self) -> bool:
        """Whether the policy leaves the model's answers as they are."""
        return make_policy(self.policy).lossless


RESIDENT = Variant("resident")


def _split(text: str) -> tuple[str, str]:
    """The policy with its options, and the forecast that stands in brackets before them, if one does."""
    match = re.fullmatch(r"\s*([^()\s]+)\s*\(\s*(\w+)\s*(?:,\s*(.*))?\)\s*", text, re.DOTALL)
    if match is None:
        return text.strip(), ""
    name, forecast, options = match.groups()
    return (f"{name}({options})" if options else name), forecast


def new_engine(
    store: HostTier,
    variant: Variant,
    num_slots: int | None = None,
    link: LinkSpec | str = "direct",
    clock: Clock | None = None,
    disk: LinkSpec | str = "direct",
    copies: HostTier | None = None,
    form: DeviceForm | None = None,
) -> ExpertCacheEngine:
    """An engine with a warm cache and fresh counts; close it.

    Args:
      store: of a model, or `ExpertSizes` to simulate without weights.
      num_slots: S; None, or a policy that keeps everything: as many as there are experts.
      clock: a new virtual one by default.
      copies: the same experts quantised, for a miss policy that runs such.
      form: of the stages that run the experts; what suits the device by default.

    Raises:
      InputError: fewer slots than the policy needs, or an unknown link.
    """
    everything = store.num_layers * store.num_experts
    slots = everything if num_slots is None or variant.whole else num_slots
    policy = make_policy(variant.policy)
    engine = ExpertCacheEngine(store, slots, policy, link, clock, disk=disk, copies=copies, form=form)
    engine.warm_up()
    engine.reset_stats()
    return engine
