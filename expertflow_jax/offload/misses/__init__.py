"""What a layer does about experts that have not arrived: one small file per miss policy, by name in `MISS_POLICIES`."""

from typing import Any

from expertflow_jax import names
from expertflow_jax.offload.misses.base import Decision, LayerStep, MissPolicy
from expertflow_jax.offload.misses.buddy import Buddy
from expertflow_jax.offload.misses.cache_prior import CachePrior
from expertflow_jax.offload.misses.capacity import Capacity
from expertflow_jax.offload.misses.defer import Defer
from expertflow_jax.offload.misses.drop import Drop
from expertflow_jax.offload.misses.drop_light import DropLight
from expertflow_jax.offload.misses.drop_weak import DropWeak
from expertflow_jax.offload.misses.fewer_experts import FewerExperts
from expertflow_jax.offload.misses.low_precision import LowPrecision
from expertflow_jax.offload.misses.substitute import Substitute
from expertflow_jax.offload.misses.wait import Wait

__all__ = ["MISS_POLICIES", "Decision", "Drop", "LayerStep", "MissPolicy", "Substitute", "Wait", "make_miss_policy"]

_CLASSES = (Wait, Drop, Substitute, DropWeak, DropLight, LowPrecision, CachePrior, Buddy, Defer, FewerExperts, Capacity)
MISS_POLICIES: dict[str, type[MissPolicy]] = {policy.name: policy for policy in _CLASSES}


def make_miss_policy(policy: str | type[MissPolicy] | MissPolicy, **options: Any) -> MissPolicy:
    """A miss policy by name of `MISS_POLICIES`, by "package.module:Class", of a class, or an instance, passed on.

    Args:
      options: keyword arguments of the class; a name may carry them too, as in "drop_weak(below=0.5)".

    Raises:
      InputError: there is no such miss policy or module, it is no `MissPolicy`, or it does not take these options.
    """
    return names.make("miss policy", policy, MISS_POLICIES, MissPolicy, **options)
