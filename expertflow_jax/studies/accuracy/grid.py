"""The cells of a study: every combination that a config's grids name, in an order in which references come first.

A *cell* is one point of the study: task, cache policy, token scheduler, miss policy, cache size and seed. The
reference of a cell is `resident` with the same scheduler (bit-identity) and `resident` + `fifo` (paired accuracy).
"""

import dataclasses
import itertools

import ml_collections

from expertflow_jax.errors import InputError
from expertflow_jax.harness.cells import Axis, grids, made_by, number, one_of, values
from expertflow_jax.harness.rows import cell_id
from expertflow_jax.models.expert_dtypes import BITS
from expertflow_jax.offload.misses import make_miss_policy
from expertflow_jax.offload.variant import RESIDENT, Variant
from expertflow_jax.scheduling import scheduler_class
from expertflow_jax.tasks.registry import task_class


@dataclasses.dataclass(frozen=True)
class Cell:
    """Coordinates of one point. Exactly one of `cache_fraction` and `memory_budget` is set; `expert_dtype` is set where
    experts are quantised; `batches_per_block` batches go through the layers together."""

    task: str
    policy: str
    scheduler: str
    miss_policy: str
    cache_fraction: float | None
    memory_budget: str | None
    seed: int
    expert_dtype: str | None = None
    batches_per_block: int = 1

    @property
    def resident(self) -> "Cell":
        """The all-resident cell with the same experts and batches."""
        policy = RESIDENT.label
        return dataclasses.replace(self, policy=policy, miss_policy="wait", cache_fraction=1.0, memory_budget=None)

    @property
    def reference(self) -> "Cell":
        """The all-resident cell with the same batches one by one, and the experts as they are in the checkpoint."""
        return dataclasses.replace(self.resident, expert_dtype=None, batches_per_block=1)

    @property
    def baseline(self) -> "Cell":
        """The all-resident cell in order of arrival, which accuracy is paired against."""
        return dataclasses.replace(self.reference, scheduler="fifo")

    @property
    def size(self) -> str:
        """As the config names it: a fraction, or a budget."""
        return self.memory_budget or f"{self.cache_fraction:g}"

    @property
    def lossless(self) -> bool:
        """Whether nothing changes answers, of a model whose experts are as trained."""
        return make_miss_policy(self.miss_policy).lossless and self.variant.lossless and not self.expert_dtype

    @property
    def variant(self) -> Variant:
        """The policy with where its forecast comes from."""
        return Variant.of(self.policy)

    @property
    def copies(self) -> str:
        """In which form the miss policy serves misses from quantised copies; "" if it does not."""
        return make_miss_policy(self.miss_policy).copies

    @property
    def forecasts(self) -> bool:
        """Whether the routing path predictor runs in this cell, for its cache policy or its scheduler."""
        return self.variant.forecast == "predictor" or scheduler_class(self.scheduler).uses_forecast

    @property
    def id(self) -> str:
        """Names the cell's files. Cells of single batches are named as if there were no others."""
        coordinates = dataclasses.asdict(self)
        if self.batches_per_block == 1:
            del coordinates["batches_per_block"]
        return cell_id(coordinates)

    def label(self) -> str:
        """Short name for progress and messages."""
        quantized = f"/{self.expert_dtype}" if self.expert_dtype else ""
        block = f" x{self.batches_per_block}" if self.batches_per_block > 1 else ""
        return (
            f"{self.task} {self.policy}/{self.scheduler}/{self.miss_policy}{quantized}{block} "
            f"@{self.size} seed {self.seed}"
        )


_CONFIG_AXES = (Axis("tasks", made_by(task_class)), Axis("seeds", number(0)))
_AXES = (
    Axis("schedulers", made_by(scheduler_class)),
    Axis("policies", made_by(Variant.of, lambda policy: Variant.of(policy).label)),
    Axis("miss_policies", made_by(make_miss_policy)),
    Axis("expert_dtypes", lambda where, dtype: dtype and one_of(BITS)(where, dtype), ("",)),  # "": the model's own
)
_BLOCKS = Axis("batches_per_block", number(1), (1,))
_FRACTIONS = Axis("cache_fractions", number(0.0, 1.0, above=True, unit="it is slots / experts"), ())
_TASKS = Axis("tasks", made_by(task_class), ())  # of one grid alone; the config's by default
_BUDGETS = Axis("memory_budgets", lambda _, budget: str(budget), ())


def cells(config: ml_collections.ConfigDict) -> list[Cell]:
    """All cells of `config.grids`, without repeats; `resident` + `fifo` of each task and seed first.

    Raises:
      InputError: an unknown policy, scheduler, miss policy or task (with the nearest name), a fraction outside
        (0, 1], or a grid without a size.
    """
    named: dict[Cell, None] = {}
    tasks, seeds = values("config key ", config, _CONFIG_AXES)
    for where, grid in grids(
        config, [a.key for a in (*_AXES, _BLOCKS, _FRACTIONS, _BUDGETS, _TASKS)], "configs/quickstart.py"
    ):
        fractions, budgets, grid_tasks = values(where, grid, (_FRACTIONS, _BUDGETS, _TASKS))
        sizes = [(fraction, None) for fraction in fractions] + [(None, budget) for budget in budgets]
        if not sizes:
            raise InputError(f"{where}: name cache_fractions or memory_budgets")
        schedulers, policies, miss_policies, dtypes, blocks = values(where, grid, (*_AXES, _BLOCKS))
        axes = (grid_tasks or tasks, schedulers, policies, miss_policies, sizes, dtypes, seeds, blocks)
        for task, scheduler, policy, miss_policy, (fraction, budget), dtype, seed, block in itertools.product(*axes):
            cell = Cell(task, policy, scheduler, miss_policy, fraction, budget, seed, dtype or None, block)
            named[cell.resident if cell.variant.whole else cell] = None
    references = {cell.reference: None for cell in named} | {cell.baseline: None for cell in named}
    references |= {cell.resident: None for cell in named if cell.variant.forecast == "truth"}  # whose routing it knows
    ordered = sorted(
        references,
        key=lambda c: (c.task, c.seed, c.scheduler != "fifo", c.scheduler, c.expert_dtype or "", c.batches_per_block),
    )
    return ordered + [cell for cell in named if cell not in references]
