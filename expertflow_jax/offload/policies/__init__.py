"""The cache policies under study, by name. See `base.py` for how to add one."""

from typing import Any

from expertflow_jax import names
from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.policies.cache_moe import CacheMoE
from expertflow_jax.offload.policies.class_lru import ClassLRU
from expertflow_jax.offload.policies.expertflow import ExpertFlow
from expertflow_jax.offload.policies.lfu import LFU
from expertflow_jax.offload.policies.moe_infinity import MoEInfinity
from expertflow_jax.offload.policies.on_demand import OnDemand
from expertflow_jax.offload.policies.oracle import Oracle
from expertflow_jax.offload.policies.pregated import Pregated
from expertflow_jax.offload.policies.pregated_forecast import PregatedForecast
from expertflow_jax.offload.policies.resident import Resident
from expertflow_jax.offload.policies.se_moe import SEMoE
from expertflow_jax.offload.policies.speculative import Speculative

POLICIES: dict[str, type[CachePolicy]] = {
    policy.name: policy
    for policy in (
        *(Resident, OnDemand, CacheMoE, ClassLRU, LFU, Speculative, SEMoE, Pregated, PregatedForecast, MoEInfinity),
        *(ExpertFlow, Oracle),
    )
}


def make_policy(policy: str | type[CachePolicy] | CachePolicy, **options: Any) -> CachePolicy:
    """A cache policy ready for an engine of its own.

    Args:
      policy: a name of `POLICIES`, with options if wanted: "expertflow(gain=1.2)"; "package.module:Class"; a subclass
        of `CachePolicy`; or an instance, which is passed on.
      options: keyword arguments of the class.

    Raises:
      InputError: there is no such policy or module, it is no `CachePolicy`, or it does not take these options.
    """
    return names.make("policy", policy, POLICIES, CachePolicy, **options)
