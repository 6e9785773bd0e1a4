"""The cache policies under study, by name. See `base.py` for how to add one."""

import difflib

from expertflow_jax.errors import InputError
from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.policies.cache_moe import CacheMoE
from expertflow_jax.offload.policies.expertflow import ExpertFlow
from expertflow_jax.offload.policies.on_demand import OnDemand
from expertflow_jax.offload.policies.oracle import Oracle
from expertflow_jax.offload.policies.resident import Resident

POLICIES: dict[str, type[CachePolicy]] = {
    policy.name: policy for policy in (Resident, OnDemand, CacheMoE, ExpertFlow, Oracle)
}


def make_policy(name: str) -> CachePolicy:
    """A new policy of this name.

    Raises:
      InputError: there is no such policy.
    """
    if name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, n=1, cutoff=0.0)[0]
        raise InputError(f"policy {name!r} does not exist; did you mean {near!r}? Known: {', '.join(POLICIES)}")
    return POLICIES[name]()
