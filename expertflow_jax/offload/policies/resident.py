"""Everything on the device: as many slots as experts, filled before timing starts. The reference of every
study.
"""

from expertflow_jax.errors import InputError
from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.slots import SlotPool


class Resident(CachePolicy):
    """No expert ever leaves; after `warm_up` none travels."""

    name = "resident"

    @staticmethod
    def least_slots(num_layers: int, num_experts: int) -> int:
        return num_layers * num_experts

    def attach(self, slots: SlotPool) -> None:
        super().attach(slots)
        experts = self.least_slots(slots.num_layers, slots.num_experts)
        if slots.num_slots < experts:
            raise InputError(
                f"policy resident keeps all {experts} experts, but there are {slots.num_slots} slots; "
                "raise memory_budget, or choose a policy that offloads"
            )
