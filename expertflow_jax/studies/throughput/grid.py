"""The cells of a throughput config, checked before any work. See configs/throughput_cpu.py for the keys."""

import dataclasses
import itertools

import ml_collections

from expertflow_jax.errors import InputError
from expertflow_jax.harness.cells import Axis, grids, made_by, number, one_of, values
from expertflow_jax.offload.variant import Variant
from expertflow_jax.simulation.gpus import check_link
from expertflow_jax.workloads.shapes import SHAPES
from expertflow_jax.workloads.windows import PHASES


@dataclasses.dataclass(frozen=True)
class Cell:
    """Variants that run side by side; `cache_fraction` 0 is one slot."""

    model: str
    phase: str
    batch_size: int
    cache_fraction: float
    variants: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str, int, float]:
        return self.model, self.phase, self.batch_size, self.cache_fraction

    def label(self) -> str:
        return f"{self.model} {self.phase} batch {self.batch_size} @{self.cache_fraction:g}"


def cells_of(config: ml_collections.ConfigDict) -> list[Cell]:
    """All cells, each once, in the order of the grids: what stands first is measured first.

    Raises:
      InputError: an empty grid, or values that cannot be.
    """
    timed = [size for size, *_ in config.windows]
    sizes = one_of(timed, hint="config key windows has entries for these alone")
    axes = (
        Axis("models", one_of((config.model, *SHAPES))),
        Axis("phases", one_of(PHASES)),
        Axis("batch_sizes", sizes),
        Axis("cache_fractions", number(0.0, 1.0, unit="it is slots / experts, 0 one slot")),
        Axis("variants", made_by(Variant.of, lambda variant: Variant.of(variant).label)),
    )
    by_key: dict[tuple, Cell] = {}
    for where, grid in grids(config, [axis.key for axis in axes], "configs/throughput_cpu.py"):
        *points, variants = values(where, grid, axes)
        for model, phase, size, fraction in itertools.product(*points):
            cell = Cell(model, phase, size, fraction, variants)
            by_key.setdefault(cell.key, cell)
    if not by_key:
        raise InputError("config key grids: they hold no cell; see configs/throughput_cpu.py")
    number(1)("config key repeats", config.repeats)
    number(0.0, above=True)("config key minutes", config.minutes)
    check_link(config.link)
    values("config key ", config, (Axis("baseline_models", one_of(SHAPES)), Axis("baseline_batch_sizes", sizes)))
    return list(by_key.values())
