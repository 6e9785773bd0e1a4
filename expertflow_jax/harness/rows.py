"""The rows of results: one per finished cell, every value checked before it is written (`fields.py` says what each is).

What several commands measure stands in `Measured` and is filled in one place, `measured`.
"""

import csv
import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from expertflow_jax.errors import InputError, brief
from expertflow_jax.harness.fields import FIELDS, keys_of
from expertflow_jax.models.expert_dtypes import BITS

if TYPE_CHECKING:  # rows load without jax
    from expertflow_jax.offload.budget import MemoryPlan
    from expertflow_jax.offload.variant import Variant


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What the rows of every command that runs a model have in common. Raises InputError, naming the key, if a value
    cannot be one."""

    command: ClassVar[str] = "study throughput"

    model: str
    policy: str
    forecast: str
    cache_fraction: float
    slots: int
    memory_budget_bytes: int
    peak_device_bytes: int
    expert_bytes: int
    batch_size: int
    tokens: int
    tokens_per_second: float
    wall_seconds: float
    compute_seconds: float
    stall_seconds: float
    predictor_seconds: float
    bytes_transferred: int
    prefetches: int
    hits: int
    late: int
    misses: int
    corrections: int
    hit_rate: float | None
    link: str
    clock: str
    device: str

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, FIELDS[field.name].check(getattr(self, field.name)))

    def to_json(self) -> dict[str, Any]:
        """Plain values, in the order of `fields.py`."""
        return {name: getattr(self, name) for name in keys_of(self.command)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """The row with these values; raises InputError for a missing or an unknown key."""
        if not isinstance(row, Mapping):
            raise InputError("result row: not a JSON object")
        names = keys_of(cls.command)
        if missing := [name for name in names if name not in row]:
            raise InputError(f"result row: no {missing[0]!r} (of {len(missing)} missing keys)")
        if unknown := [name for name in row if name not in names]:
            raise InputError(f"result row: unknown key {brief(repr(unknown[0]))}")
        return cls(**row)


def measured(
    stats: Mapping[str, Any],
    plan: "MemoryPlan",
    *,
    model: str,
    variant: "Variant",
    batch_size: int,
    tokens: int,
    peak_device_bytes: int,
) -> dict[str, Any]:
    """The values of `Measured`.

    Args:
      stats: of the engine; `wall_seconds` may be replaced by what was timed around it.
      plan: how the memory was divided; its total is the budget.
    """
    import jax

    wall, compute = stats["wall_seconds"], stats["compute_seconds"]
    if stats["clock"] == "real":  # the device works while the host waits for nothing else
        compute = max(0.0, wall - stats["stall_seconds"] - stats["predictor_seconds"] - stats["host_seconds"])
    requests = stats["hits"] + stats["late"] + stats["misses"]
    passed_on = ("stall_seconds", "predictor_seconds", "link", "clock")
    counts = ("bytes_transferred", "prefetches", "hits", "late", "misses", "corrections")
    return {
        "model": model,
        "policy": variant.label,
        "forecast": variant.forecast,
        "cache_fraction": plan.cache_fraction,
        "slots": plan.slots,
        "memory_budget_bytes": plan.total_bytes,
        "peak_device_bytes": peak_device_bytes,
        "expert_bytes": plan.expert_bytes,
        "batch_size": batch_size,
        "tokens": tokens,
        "tokens_per_second": tokens / wall,
        "wall_seconds": wall,
        "compute_seconds": compute,
        "hit_rate": stats["hits"] / requests if requests else None,
        **{key: stats[key] for key in passed_on},
        **{key: round(stats[key]) for key in counts},
        "device": jax.local_devices()[0].device_kind,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellRow(Measured):
    """What one cell of a study measured. What compares with answers is None where these are not public (`scored`)."""

    command: ClassVar[str] = "study"

    cell_id: str
    task: str
    split: str
    scheduler: str
    miss_policy: str
    miss_options: str | None
    expert_dtype: str
    lossless: bool
    size: str
    host_bytes: int
    batches_per_block: int
    seed: int
    num_examples: int
    units: int
    evaluator: str
    accuracy: float
    accuracy_ci_low: float
    accuracy_ci_high: float
    reference_accuracy: float
    second_evaluator: str | None
    second_accuracy: float | None
    second_reference_accuracy: float | None
    accuracy_delta: float
    delta_ci_low: float
    delta_ci_high: float
    flips: int
    p_value: float
    equivalence_p: float
    equivalence_margin: float
    mcnemar_p: float
    logit_kl: float
    margin_delta: float
    dropped_rate: float
    deferred_rate: float
    exchanged_rate: float
    discarded_mass: float
    bit_identical: bool
    disk_bytes: int
    predictor_tokens_saved: int
    experts_per_batch: float
    first_token_seconds: float | None
    perplexity: float | None
    predictions_sha256: str | None = None  # known once the predictions are written
    arrays_sha256: str | None = None  # likewise; None in cells that no other is compared with

    @property
    def scored(self) -> bool:
        """Whether the task's answers are public."""
        return self.accuracy is not None

    @property
    def quantized(self) -> bool:
        """Whether experts are quantised."""
        return self.expert_dtype in BITS

    @property
    def losses(self) -> str:
        """What may change answers: the miss policy, or the experts' dtype, or both ("int4+drop"); "wait": nothing."""
        if not self.quantized:
            return self.miss_policy
        return self.expert_dtype if self.miss_policy == "wait" else f"{self.expert_dtype}+{self.miss_policy}"


ROW_KEYS = keys_of("study")


def to_csv(rows: Sequence[Measured]) -> str:
    """Rows of one command with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, keys_of(rows[0].command) if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.to_json() for row in rows)
    return text.getvalue()


def cell_id(coordinates: Any) -> str:
    """A cell's name in file names: its values, readable, and 8 digits that hash all names and values.

    Args:
      coordinates: a dataclass or a mapping of what tells the cell from every other; None values are left out of
        the readable part.
    """
    is_instance = dataclasses.is_dataclass(coordinates) and not isinstance(coordinates, type)
    plain = dataclasses.asdict(coordinates) if is_instance else dict(coordinates)
    canonical = json.dumps(plain, sort_keys=True, default=str)
    digest = hashlib.blake2b(canonical.encode(), digest_size=4).hexdigest()
    words = [re.sub(r"[^A-Za-z0-9._-]+", "-", str(value)) for value in plain.values() if value is not None]
    return "_".join([*words, digest])[-120:].lstrip("._-")
