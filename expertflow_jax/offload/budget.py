"""The memory budget: what one stated number of device bytes is spent on, and how many expert slots are left.
(DESIGN section 7.)

A budget covers dense parameters, KV cache, workspace, predictor and slots. Transfers in flight need no part
of their own: each occupies its slot from its start (see engine.py). A second budget may bound the host memory of the
experts. Axes: L MoE layers, E experts, S slots.
"""

import dataclasses
import math
import operator
import re
from fractions import Fraction

from expertflow_jax.errors import InputError

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[f"{_letter}b"] = 1000**_power
    _UNITS[f"{_letter}ib"] = 1024**_power


def parse_bytes(amount: str | int) -> int:
    """Reads an amount of memory: a number of bytes, or text such as "8GiB", "512 MiB", "1.5GB" (powers of
    1000).

    Fractions of a byte are dropped.

    Raises:
      InputError: anything else, and negative amounts.
    """
    if isinstance(amount, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", amount, re.IGNORECASE | re.ASCII)
        if match and match[2].lower() in _UNITS:
            return math.floor(Fraction(match[1]) * _UNITS[match[2].lower()])
    elif not isinstance(amount, bool):
        try:
            number = operator.index(amount)
        except TypeError:
            number = -1
        if number >= 0:
            return number
    raise InputError(f'memory {amount!r}: write a number of bytes, or a text such as "8GiB", "512MiB" or "1.5GB"')


def format_bytes(nbytes: int) -> str:
    """The amount in the largest binary unit it fills, rounded up to two decimals: what is read back is never
    less.
    """
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if nbytes >= 1024**power:
            hundredths = -(-nbytes * 100 // 1024**power)
            return f"{hundredths // 100}.{hundredths % 100:02d}{unit}"
    return f"{nbytes}B"


@dataclasses.dataclass(frozen=True)
class HostPlan:
    """How the experts are divided between pinned host memory and the checkpoint's files.

    Attributes:
      experts: of the model.
      pinned: experts that pinned host memory holds at most.
      expert_bytes, file_bytes: one expert as it is pinned, and as it lies in the files.
      reading_bytes: memory in which an expert is read and packed, beside the pinned ones; 0 if all are pinned.
    """

    experts: int
    pinned: int
    expert_bytes: int
    file_bytes: int = 0
    reading_bytes: int = 0

    @property
    def host_bytes(self) -> int:
        """Host memory that experts take."""
        return self.pinned * self.expert_bytes + self.reading_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes in the files of the experts that have no place in host memory."""
        return (self.experts - self.pinned) * self.file_bytes


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """How the device memory is divided.

    Attributes:
      dense_bytes: parameters that always stay: attention, router, embeddings, vision tower.
      kv_bytes: KV cache of the largest batch.
      workspace_bytes: activations and temporaries of the largest step.
      predictor_bytes: the routing path predictor with its own cache; 0 without one.
      expert_bytes: one expert.
      num_layers, num_experts: L, E.
      slots: S, experts that fit at once.
      host: how the experts are divided below the device; None: all are pinned.
    """

    dense_bytes: int
    kv_bytes: int
    workspace_bytes: int
    predictor_bytes: int
    expert_bytes: int
    num_layers: int
    num_experts: int
    slots: int
    host: HostPlan | None = None

    @property
    def slot_bytes(self) -> int:
        """Device bytes of all slots."""
        return self.slots * self.expert_bytes

    @property
    def fixed_bytes(self) -> int:
        """What is needed besides the slots."""
        return self.dense_bytes + self.kv_bytes + self.workspace_bytes + self.predictor_bytes

    @property
    def total_bytes(self) -> int:
        """All device memory of the plan."""
        return self.fixed_bytes + self.slot_bytes

    @property
    def minimum_bytes(self) -> int:
        """The least budget that would do: one slot."""
        return self.fixed_bytes + self.expert_bytes

    @property
    def host_bytes(self) -> int:
        """Pinned host memory of the experts."""
        return self.num_layers * self.num_experts * self.expert_bytes if self.host is None else self.host.host_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of the experts that are on disk alone."""
        return 0 if self.host is None else self.host.disk_bytes

    @property
    def cache_fraction(self) -> float:
        """Slots as a fraction of all experts, in (0, 1]."""
        return self.slots / (self.num_layers * self.num_experts)

    def describe(self) -> list[tuple[str, int]]:
        """(part, bytes) of the device memory and their total, as a dry run prints them."""
        experts = self.num_layers * self.num_experts
        return [
            ("dense parameters", self.dense_bytes),
            ("KV cache", self.kv_bytes),
            ("workspace", self.workspace_bytes),
            ("predictor", self.predictor_bytes),
            (f"{self.slots} of {experts} expert slots", self.slot_bytes),
            ("total", self.total_bytes),
        ]

    def describe_tiers(self) -> list[tuple[str, int]]:
        """(tier, bytes) of device, host and disk, as a dry run prints them."""
        experts = self.num_layers * self.num_experts
        pinned = experts if self.host is None else self.host.pinned
        return [
            ("device", self.total_bytes),
            (f"host, {pinned} experts pinned", self.host_bytes),
            (f"disk, {experts - pinned} experts", self.disk_bytes),
        ]


def plan_memory(
    budget_bytes: int | None,
    cache_fraction: float | None,
    *,
    dense: int,
    kv: int,
    workspace: int,
    predictor: int,
    expert_bytes: int,
    num_layers: int,
    num_experts: int,
    host: HostPlan | None = None,
) -> MemoryPlan:
    """Derives the number of slots from a budget or from a fraction of all experts; without either, all are
    resident.

    Args:
      budget_bytes: all device memory that may be used (see `parse_bytes`), or None.
      cache_fraction: slots over experts of all layers, in (0, 1], rounded down but at least one slot; or
        None.
      dense, kv, workspace, predictor: bytes of these parts.
      expert_bytes: bytes of one expert.
      num_layers, num_experts: L, E.
      host: how the experts are divided below the device; None: all are pinned.

    Raises:
      InputError: both are given; the fraction is outside (0, 1]; or the budget does not hold the fixed parts
        and one expert, with the minimum that would.
    """
    if budget_bytes is not None and cache_fraction is not None:
        raise InputError(
            f"memory_budget {format_bytes(budget_bytes)} and cache_fraction {cache_fraction:g} "
            "are both given; leave one of them out"
        )
    experts = num_layers * num_experts
    plan = MemoryPlan(dense, kv, workspace, predictor, expert_bytes, num_layers, num_experts, experts, host)
    if cache_fraction is not None:
        if not 0 < cache_fraction <= 1:
            raise InputError(f"cache_fraction {cache_fraction:g}: it must be above 0 and at most 1")
        # 0.29 * 100 is a hair below 29 in floating point
        return dataclasses.replace(plan, slots=max(1, math.floor(cache_fraction * experts + 1e-9)))
    if budget_bytes is None:
        return plan
    if budget_bytes < plan.minimum_bytes:
        parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in plan.describe()[:4] if size)
        needs = f"{parts} and one expert" if parts else "one expert"
        raise InputError(
            f"memory_budget {format_bytes(budget_bytes)} is below the minimum of {plan.minimum_bytes} bytes "
            f"({format_bytes(plan.minimum_bytes)}): {needs} {format_bytes(expert_bytes)}; raise "
            "memory_budget, or make batch or prompts smaller"
        )
    return dataclasses.replace(plan, slots=min(experts, (budget_bytes - plan.fixed_bytes) // expert_bytes))


def plan_host(
    budget_bytes: int | None, *, experts: int, expert_bytes: int, file_bytes: int, reading_bytes: int
) -> HostPlan:
    """Divides the experts between pinned host memory and files.

    Args:
      budget_bytes: host memory for experts, or None for as much as they take.
      experts: of the model.
      expert_bytes, file_bytes: one expert as it is pinned, and as it lies in the files.
      reading_bytes: memory that reading and packing one expert takes.

    Raises:
      InputError: the budget does not hold two experts, one on its way to the device while the next is read, with the
        minimum that would.
    """
    if budget_bytes is None or budget_bytes >= experts * expert_bytes + reading_bytes:
        return HostPlan(experts, experts, expert_bytes, file_bytes, 0)
    least = reading_bytes + 2 * expert_bytes
    if budget_bytes < least:
        raise InputError(
            f"host_memory_budget {format_bytes(budget_bytes)} is below the minimum of {least} bytes "
            f"({format_bytes(least)}): two experts of {format_bytes(expert_bytes)} and {format_bytes(reading_bytes)} "
            "to read one; raise host_memory_budget"
        )
    return HostPlan(experts, (budget_bytes - reading_bytes) // expert_bytes, expert_bytes, file_bytes, reading_bytes)
