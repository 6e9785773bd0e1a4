"""The rows of results: one per finished cell, every value checked before it is written.

Row keys: DESIGN section 5. Rates are in [0, 1], times in seconds, sizes in bytes.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.models.expert_dtypes import BITS

_IN_UNIT = (
    "cache_fraction",
    "accuracy",
    "accuracy_ci_low",
    "accuracy_ci_high",
    "reference_accuracy",
    "mcnemar_p",
    "hit_rate",
)
_DIFFERENCES = ("accuracy_delta", "delta_ci_low", "delta_ci_high")
_OPTIONAL = ("hit_rate", "perplexity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellRow:
    """What one cell of a study measured. Raises InputError, naming the key, if a value cannot be one.

    Attributes (beyond those whose name says it):
      cell_id: see `cell_id`; names the cell's files.
      expert_dtype: that experts are kept, moved and cached in: the model's own, or "int8" or "int4", which is lossy.
      lossless: the miss policy waits for every expert, and experts are as the checkpoint has them.
      cache_fraction: slots / experts.
      peak_device_bytes: largest sum of everything on the device during the run.
      host_bytes: host memory that experts take.
      disk_bytes: read from the checkpoint's files during the run, for experts that were not in host memory.
      accuracy_delta: accuracy less that of the all-resident run in order of arrival, with its paired interval.
      flips: examples whose answer differs from that run's.
      mcnemar_p: exact McNemar test of the same pairs, not adjusted for other cells.
      logit_kl: mean over examples of KL(reference || cell) of the first answer token, in nats.
      bit_identical: every logit equals, bit for bit, that of the all-resident run of the same batches.
      tokens: prompt and answer tokens processed.
      hits, late, misses: requests of a (layer, expert) by a step that found it in a slot, under way, or neither.
      corrections: mispredictions repaired at run time.
      hit_rate: hits / requests; None if there was no request.
      perplexity: exp of the mean negative log-likelihood of a text's tokens; None for tasks that generate answers.
      experts_per_batch: mean over batches and layers of distinct experts.
    """

    cell_id: str
    model: str
    task: str
    split: str
    policy: str
    scheduler: str
    miss_policy: str
    expert_dtype: str
    lossless: bool
    cache_fraction: float
    slots: int
    memory_budget_bytes: int
    peak_device_bytes: int
    host_bytes: int
    expert_bytes: int
    batch_size: int
    seed: int
    num_examples: int
    accuracy: float
    accuracy_ci_low: float
    accuracy_ci_high: float
    reference_accuracy: float
    accuracy_delta: float
    delta_ci_low: float
    delta_ci_high: float
    flips: int
    mcnemar_p: float
    logit_kl: float
    bit_identical: bool
    tokens: int
    tokens_per_second: float
    wall_seconds: float
    compute_seconds: float
    stall_seconds: float
    predictor_seconds: float
    bytes_transferred: int
    disk_bytes: int
    prefetches: int
    hits: int
    late: int
    misses: int
    corrections: int
    hit_rate: float | None
    experts_per_batch: float
    perplexity: float | None
    link: str
    clock: str
    device: str

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.name in _OPTIONAL:
                continue
            plain = _checked(field.name, value, field.type)
            object.__setattr__(self, field.name, plain)

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

    def to_json(self) -> dict[str, Any]:
        """Plain values, in DESIGN's order."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """The row with these values; raises InputError for a missing or an unknown key."""
        names = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in names if name not in row]:
            raise InputError(f"result row: no {missing[0]!r} (of {len(missing)} missing keys)")
        if unknown := [name for name in row if name not in names]:
            raise InputError(f"result row: unknown key {unknown[0]!r}")
        return cls(**row)


ROW_KEYS = tuple(field.name for field in dataclasses.fields(CellRow))


def _checked(name: str, value: Any, kind: Any) -> bool | int | float | str:
    """`value` as a plain Python value of `kind`; NumPy scalars are welcome."""
    if isinstance(value, np.generic):
        value = value.item()
    if kind is str:
        if isinstance(value, str) and value:
            return value
        raise InputError(f"result row: {name} is {value!r}, want text")
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise InputError(f"result row: {name} is {value!r}, want true or false")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"result row: {name} is {value!r}, want a finite number")
    low = -1.0 if name in _DIFFERENCES else 0.0
    high = 1.0 if name in _DIFFERENCES or name in _IN_UNIT else math.inf
    if not low <= value <= high:
        raise InputError(f"result row: {name} is {value!r}, outside [{low:g}, {high:g}]")
    if kind is int:
        if isinstance(value, int):
            return value
        raise InputError(f"result row: {name} is {value!r}, want a whole number")
    return float(value)


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
