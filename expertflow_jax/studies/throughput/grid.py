"""The cells of a throughput config, checked before any work. See configs/throughput_cpu.py for the keys."""

import dataclasses
import itertools

import ml_collections

from expertflow_jax.errors import InputError
from expertflow_jax.harness.cells import Axis, grids, made_by, number, one_of, values
from expertflow_jax.offload.variant import Variant
from expertflow_jax.simulation.gpus import check_link
from expertflow_jax.workloads.shapes import ALL, SHAPES
from expertflow_jax.workloads.windows import PHASES


@dataclasses.dataclass(frozen=True)
class Cell:
    """Variants that run side by side.

    Attributes:
      cache_fraction: 0 is one slot.
      batches: of the window.
      batches_per_block: M of them go through the layers together.
    """

    model: str
    phase: str
    batch_size: int
    cache_fraction: float
    batches: int
    batches_per_block: int
    variants: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str, int, float, int, int]:
        """What tells it from other cells, as rows have it."""
        window = self.batches * self.batch_size
        return self.model, self.phase, self.batch_size, self.cache_fraction, window, self.batches_per_block

    def label(self) -> str:
        blocks = f", blocks of {self.batches_per_block}" if self.batches_per_block > 1 else ""
        return f"{self.model} {self.phase} batch {self.batch_size} @{self.cache_fraction:g}{blocks}"


def cells_of(config: ml_collections.ConfigDict) -> list[Cell]:
    """All cells, each once, in the order of the grids: what stands first is measured first.

    Raises:
      InputError: an empty grid, or values that cannot be.
    """
    timed = [size for size, *_ in config.windows]
    sizes = one_of(timed, hint="config key windows has entries for these alone")
    axes = (
        Axis("models", one_of((config.model, *ALL))),
        Axis("phases", one_of(PHASES)),
        Axis("batch_sizes", sizes),
        Axis("cache_fractions", number(0.0, 1.0, unit="it is slots / experts, 0 one slot")),
        Axis("batches", number(0, unit="0: as config key windows says"), (0,)),
        Axis("batches_per_block", number(1), (1,)),
        Axis("variants", made_by(Variant.of, lambda variant: Variant.of(variant).label)),
    )
    usual: dict[tuple[str, int], int] = {}  # batches of a window
    for size, prefills, decodes, _ in config.windows:
        usual |= {("prefill", size): prefills, ("decode", size): decodes}
    by_key: dict[tuple, Cell] = {}
    for where, grid in grids(config, [axis.key for axis in axes], "configs/throughput_cpu.py"):
        *points, variants = values(where, grid, axes)
        for model, phase, size, fraction, batches, together in itertools.product(*points):
            batches = batches or usual[phase, size]
            if together > batches:
                raise InputError(
                    f"{where}.batches_per_block: a block of {together} is more than the window's {batches}"
                )
            cell = Cell(model, phase, size, fraction, batches, together, variants)
            by_key.setdefault(cell.key, cell)
    if not by_key:
        raise InputError("config key grids: they hold no cell; see configs/throughput_cpu.py")
    number(1)("config key repeats", config.repeats)
    number(0.0, above=True)("config key minutes", config.minutes)
    check_link(config.link)
    values("config key ", config, (Axis("baseline_models", one_of(SHAPES)), Axis("baseline_batch_sizes", sizes)))
    return list(by_key.values())
