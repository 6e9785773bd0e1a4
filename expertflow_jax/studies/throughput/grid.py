"""The cells of a throughput config, checked before any work. See configs/throughput_cpu.py for the keys."""

import dataclasses
from collections.abc import Iterable

import ml_collections

from expertflow_jax.errors import InputError
from expertflow_jax.simulation.gpus import check_link
from expertflow_jax.studies.throughput.measure import VARIANTS
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
    """All cells, each once, in the order of the blocks: what stands first is measured first.

    Raises:
      InputError: an empty grid, or values that cannot be.
    """
    found: dict[tuple, Cell] = {}
    sizes = [size for size, *_ in config.windows]
    for name, block in config.blocks.items():
        where = f"config key blocks.{name}"
        _known(f"{where}.models", block.models, (config.model, *SHAPES))
        _known(f"{where}.phases", block.phases, PHASES)
        _known(f"{where}.variants", block.variants, VARIANTS)
        for size in block.batch_sizes:
            if size not in sizes:
                raise InputError(f"{where}.batch_sizes: {size} has no entry in config key windows")
        for fraction in block.cache_fractions:
            if not 0 <= fraction <= 1:
                raise InputError(f"{where}.cache_fractions: {fraction} is not between 0 (one slot) and 1")
        for model in block.models:
            for phase in block.phases:
                for size in block.batch_sizes:
                    for fraction in block.cache_fractions:
                        cell = Cell(model, phase, int(size), float(fraction), tuple(block.variants))
                        found.setdefault(cell.key, cell)
    if not found:
        raise InputError("config key blocks: the grid is empty; add a block (see configs/throughput_cpu.py)")
    if config.repeats < 1:
        raise InputError(f"config key repeats: {config.repeats} is below 1")
    if config.minutes <= 0:
        raise InputError(f"config key minutes: {config.minutes} is not above 0")
    check_link(config.link)
    _known("config key baseline_models", config.baseline_models, SHAPES)
    _known("config key baseline_batch_sizes", config.baseline_batch_sizes, sizes)
    return list(found.values())


def _known(where: str, names: Iterable, known: Iterable) -> None:
    known = tuple(known)
    for name in names:
        if name not in known:
            raise InputError(f"{where}: {name!r} is none of {', '.join(map(str, known))}")
