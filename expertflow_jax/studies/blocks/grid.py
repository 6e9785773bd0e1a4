"""The cells of a config of blocks, checked before any work. See configs/blocks.py for the keys."""

import dataclasses
import itertools

import ml_collections

from expertflow_jax.errors import InputError
from expertflow_jax.harness.cells import Axis, grids, made_by, number, one_of, values
from expertflow_jax.offload.budget import parse_bytes
from expertflow_jax.offload.variant import Variant
from expertflow_jax.simulation.gpus import GPUS


@dataclasses.dataclass(frozen=True)
class Cell:
    """One policy, one number of batches per block, one size.

    Attributes:
      model: key of `config.models`.
      sequences: of the window.
      prompt_tokens: of every prompt; 0: as recorded.
      new_tokens: decode steps after the prompt, whose last token gives the answer's first.
      cache_fraction, memory_budget: which of both is given; 0 and "" is not.
    """

    model: str
    gpu: str
    sequences: int
    prompt_tokens: int
    new_tokens: int
    cache_fraction: float
    memory_budget: str
    variant: str
    batches_per_block: int

    @property
    def room(self) -> str:
        """As tables name it."""
        return self.memory_budget or f"@{self.cache_fraction:g}"

    def label(self) -> str:
        prompts = f"prompts of {self.prompt_tokens}" if self.prompt_tokens else "recorded prompts"
        answers = f"{self.new_tokens} decode steps"
        return f"{self.model} {self.room}, {prompts}, {answers}, {self.variant}, M = {self.batches_per_block}"


def cells_of(config: ml_collections.ConfigDict) -> list[Cell]:
    """All cells, each once, in the order of the grids.

    Raises:
      InputError: an empty grid, or values that cannot be.
    """
    number(1)("config key batch_size", config.batch_size)
    number(0)("config key new_tokens", config.new_tokens)
    one_of(GPUS)("config key gpu", config.gpu)
    axes = (
        Axis("models", one_of(tuple(config.models))),
        Axis("sequences", number(config.batch_size, unit="config key batch_size is the least")),
        Axis("prompt_tokens", number(0)),
        Axis("new_tokens", number(0, config.new_tokens, unit="config key new_tokens is the most")),
        Axis("cache_fractions", number(0.0, 1.0, above=True, unit="it is slots / experts"), ()),
        Axis("memory_budgets", made_by(parse_bytes), ()),
        Axis("variants", made_by(Variant.of, lambda variant: Variant.of(variant).label)),
        Axis("batches_per_block", number(1)),
    )
    cells: dict[Cell, None] = {}
    for where, grid in grids(config, [axis.key for axis in axes], "configs/blocks.py"):
        models, sequences, prompts, answers, fractions, budgets, variants, sizes = values(where, grid, axes)
        rooms = [(fraction, "") for fraction in fractions] + [(0.0, budget) for budget in budgets]
        for point in itertools.product(models, sequences, prompts, answers, rooms, variants, sizes):
            model, count, prompt, answer, (fraction, budget), variant, size = point
            if size * config.batch_size <= count:
                cells[Cell(model, config.gpu, count, prompt, answer, fraction, budget, variant, size)] = None
    if not cells:
        raise InputError("config key grids: they hold no cell; see configs/blocks.py")
    return list(cells)
