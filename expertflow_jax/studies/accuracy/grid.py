"""The cells of a study: every combination that a config's blocks name, in an order in which references come first.

A *cell* is one point of the study: task, cache policy, token scheduler, miss policy, cache size and seed. The
reference of a cell is `resident` with the same scheduler (bit-identity) and `resident` + `fifo` (paired accuracy).
"""

import dataclasses
import difflib
import itertools
from collections.abc import Iterable, Sequence

import ml_collections

from expertflow_jax.errors import InputError
from expertflow_jax.models.expert_dtypes import BITS
from expertflow_jax.offload.misses import MISS_POLICIES
from expertflow_jax.offload.policies import POLICIES, make_policy
from expertflow_jax.scheduling import SCHEDULERS
from expertflow_jax.tasks.registry import TASKS


@dataclasses.dataclass(frozen=True)
class Cell:
    """Coordinates of one point. Exactly one of `cache_fraction` and `memory_budget` is set; `expert_dtype` is set where
    experts are quantised."""

    task: str
    policy: str
    scheduler: str
    miss_policy: str
    cache_fraction: float | None
    memory_budget: str | None
    seed: int
    expert_dtype: str | None = None

    @property
    def resident(self) -> "Cell":
        """The all-resident cell with the same experts and batches."""
        return dataclasses.replace(self, policy="resident", miss_policy="wait", cache_fraction=1.0, memory_budget=None)

    @property
    def reference(self) -> "Cell":
        """The all-resident cell with the same batches and the experts as they are in the checkpoint."""
        return dataclasses.replace(self.resident, expert_dtype=None)

    @property
    def baseline(self) -> "Cell":
        """The all-resident cell in order of arrival, which accuracy is paired against."""
        return dataclasses.replace(self.reference, scheduler="fifo")

    @property
    def forecasts(self) -> bool:
        """Whether the routing path predictor runs in this cell, for its cache policy or its scheduler."""
        policy = make_policy(self.policy).uses_forecast and self.policy != "oracle"
        return policy or SCHEDULERS[self.scheduler].uses_forecast

    def label(self) -> str:
        """Short name for progress and messages."""
        size = self.memory_budget or f"{self.cache_fraction:g}"
        quantized = f"/{self.expert_dtype}" if self.expert_dtype else ""
        return f"{self.task} {self.policy}/{self.scheduler}/{self.miss_policy}{quantized} @{size} seed {self.seed}"


def cells(config: ml_collections.ConfigDict) -> list[Cell]:
    """All cells of `config.blocks`, without repeats; `resident` + `fifo` of each task and seed first.

    Raises:
      InputError: an unknown policy, scheduler, miss policy or task (with the nearest name), a fraction outside
        (0, 1], or a block without a size.
    """
    found: dict[Cell, None] = {}
    for name, block in config.blocks.items():
        where = f"config key blocks.{name}"
        _check_names(f"{where}.policies", block.policies, POLICIES)
        _check_names(f"{where}.schedulers", block.schedulers, SCHEDULERS)
        _check_names(f"{where}.miss_policies", block.miss_policies, MISS_POLICIES)
        _check_names("config key tasks", config.tasks, TASKS)
        expert_dtypes = tuple(block.get("expert_dtypes", ("",)))
        _check_names(f"{where}.expert_dtypes", filter(None, expert_dtypes), BITS)
        fractions, budgets = tuple(block.cache_fractions), tuple(block.get("memory_budgets", ()))
        if bad := [f for f in fractions if not 0 < f <= 1]:
            raise InputError(f"{where}.cache_fractions: {bad[0]} is not in (0, 1]; it is slots / experts")
        sizes: list[tuple[float | None, str | None]] = [(f, None) for f in fractions]
        sizes += [(None, str(b)) for b in budgets]
        if not sizes:
            raise InputError(f"{where}: name cache_fractions or memory_budgets")
        axes: Sequence[Iterable] = (
            config.tasks,
            block.schedulers,
            block.policies,
            block.miss_policies,
            sizes,
            expert_dtypes,
        )
        for task, scheduler, policy, miss_policy, (fraction, budget), kept in itertools.product(*axes):
            for seed in config.seeds:
                cell = Cell(task, policy, scheduler, miss_policy, fraction, budget, int(seed), kept or None)
                found[cell.resident if policy == "resident" else cell] = None
    references = {cell.reference: None for cell in found} | {cell.baseline: None for cell in found}
    references |= {cell.resident: None for cell in found if cell.policy == "oracle"}  # whose routing it knows
    ordered = sorted(
        references, key=lambda c: (c.task, c.seed, c.scheduler != "fifo", c.scheduler, c.expert_dtype or "")
    )
    return ordered + [cell for cell in found if cell not in references]


def _check_names(where: str, names: Iterable[str], known: Iterable[str]) -> None:
    known = sorted(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise InputError(f"{where}: no such name {name!r}; did you mean {near[0]!r}? Known: {', '.join(known)}")
