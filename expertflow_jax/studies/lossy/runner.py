"""Runs a config of lossy policies on full-size shapes: cell by cell, resumable at cells; then the report.

A cell is a model, a cache size, a cache policy and a miss policy. Nothing here depends on the machine.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console
from rich.progress import track

from expertflow_jax.errors import InputError
from expertflow_jax.files import write_atomically
from expertflow_jax.harness.cells import Axis, grids, made_by, number, one_of, values
from expertflow_jax.harness.document import Block, Code, Grid, Heading, Paragraph, to_markdown
from expertflow_jax.harness.fields import checked
from expertflow_jax.harness.inputs import claimed_workdir, model_files
from expertflow_jax.harness.row_file import with_keys
from expertflow_jax.inference.loading import load_model
from expertflow_jax.models.expert_dtypes import BITS
from expertflow_jax.models.quantized import QuantizedLayout
from expertflow_jax.offload.misses import MissPolicy, make_miss_policy
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.offload.variant import Variant, new_engine
from expertflow_jax.simulation.gpus import GPUS
from expertflow_jax.simulation.machines import gpu_machine
from expertflow_jax.studies.blocks.memory import sizes_of
from expertflow_jax.studies.lossy.replay import RoutedStep, replay, routed_steps
from expertflow_jax.workloads.recorded import record_questions
from expertflow_jax.workloads.shapes import find_shape

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One simulated point.

    Attributes:
      model: key of `config.models`.
      cache_fraction: slots / experts.
    """

    model: str
    cache_fraction: float
    variant: str
    miss_policy: str

    def label(self) -> str:
        """Short name."""
        return f"{self.model} @{self.cache_fraction:g}, {self.variant}, {self.miss_policy}"


def cells_of(config: ml_collections.ConfigDict) -> list[Cell]:
    """All cells, each once; those of a model stand together.

    Raises:
      InputError: an empty grid, or values that cannot be.
    """
    number(1)("config key batch_size", config.batch_size)
    number(config.batch_size, unit="config key batch_size is the least")("config key sequences", config.sequences)
    number(0)("config key new_tokens", config.new_tokens)
    one_of(GPUS)("config key gpu", config.gpu)
    axes = (
        Axis("models", one_of(tuple(config.models))),
        Axis("cache_fractions", number(0.0, 1.0, above=True, unit="it is slots / experts")),
        Axis("variants", made_by(Variant.of, lambda variant: Variant.of(variant).label)),
        Axis("miss_policies", made_by(make_miss_policy)),
    )
    found: dict[Cell, None] = {}
    for where, grid in grids(config, [axis.key for axis in axes], "configs/frontier_at_scale.py"):
        for point in itertools.product(*values(where, grid, axes)):
            cell = Cell(*point)
            if Variant.of(cell.variant).forecast != "none":
                raise InputError(f"{where}: variants: {cell.variant} forecasts, which is not replayed here")
            found[cell] = None
    if not found:
        raise InputError("config key grids: they hold no cell; see configs/frontier_at_scale.py")
    return sorted(found, key=lambda cell: cell.model)


def plan(config: ml_collections.ConfigDict) -> None:
    """Prints the cells; runs nothing."""
    console = Console(width=118)
    cells = cells_of(config)
    for cell in cells:
        console.print(f"{cell.label()}: {_slots(config, cell)} slots", highlight=False)
    console.print(f"{len(cells)} cells; nothing is loaded but the recorded model, and nothing is measured")


def run(config: ml_collections.ConfigDict, workdir: Path, command: str) -> list[Row]:
    """Replays what is not replayed yet, writes results.jsonl and report.md, returns all rows.

    Raises:
      InputError: bad config, or a workdir of another one.
    """
    cells = cells_of(config)
    with claimed_workdir(workdir, config, model_files(config.model)) as place:
        results = place.row_file("results.jsonl", with_keys("cell", "tokens_per_second"))
        finished = {row["cell"] for row in results.rows}
        missing = [(number, cell) for number, cell in enumerate(cells) if number not in finished]
        model = load_model(config.model) if missing else None
        recording = record_questions(model, config.sequences, config.new_tokens, config.seed) if model else None
        steps: dict[str, list[RoutedStep]] = {}
        for number_of_cell, cell in track(missing, description="cells"):
            assert model is not None
            assert recording is not None
            if cell.model not in steps:
                image_token = getattr(model.config, "image_token_id", -1)
                steps = {cell.model: routed_steps(recording, _shape(config, cell), config.batch_size, image_token)}
            results.append(_row(config, number_of_cell, cell, steps[cell.model]))
        rows = sorted(results.rows, key=lambda row: row["cell"])
        write_atomically(workdir / "report.md", to_markdown(_report(rows, command)))
    Console(width=118).print(f"{len(rows)} cells; {workdir / 'report.md'}")
    return rows


def _shape(config: ml_collections.ConfigDict, cell: Cell) -> tuple[int, int, int]:
    text = sizes_of(config.models[cell.model]).config.text
    return len(text.moe_layers), text.num_experts, text.num_experts_per_tok


def _slots(config: ml_collections.ConfigDict, cell: Cell) -> int:
    layers, experts, _ = _shape(config, cell)
    return max(1, int(cell.cache_fraction * layers * experts))


def _row(config: ml_collections.ConfigDict, number_of_cell: int, cell: Cell, steps: Sequence[RoutedStep]) -> Row:
    layers, experts, _ = _shape(config, cell)
    machine = gpu_machine(config.gpu, find_shape(cell.model).full)
    variant, policy = Variant.of(cell.variant), make_miss_policy(cell.miss_policy)
    sizes = ExpertSizes(layers, experts, machine.expert_bytes)
    copies = _copies(config, cell, policy)
    with new_engine(sizes, variant, _slots(config, cell), machine.link, copies=copies) as engine:
        stats, rates = replay(engine, steps, policy, machine.costs)
    tokens = sum(len(step.image) for step in steps)
    passed_on = ("wall_seconds", "compute_seconds", "stall_seconds", "slots", "hit_rate", "link", "clock")
    counts = ("bytes_transferred", "hits", "late", "misses")
    row = {
        "cell": number_of_cell,
        "model": cell.model,
        "machine": machine.name,
        "variant": cell.variant,
        "policy": variant.name,
        "miss_policy": cell.miss_policy,
        "miss_options": policy.options or None,
        "batch_size": config.batch_size,
        "window": config.sequences,
        "new_tokens": config.new_tokens,
        "cache_fraction": cell.cache_fraction,
        "expert_bytes": machine.expert_bytes,
        "tokens": tokens,
        "tokens_per_second": tokens / stats["wall_seconds"],
        **{key: stats[key] for key in passed_on},
        **{key: round(stats[key]) for key in counts},
        **rates,
    }
    return checked("lossy", row)


def _copies(config: ml_collections.ConfigDict, cell: Cell, policy: MissPolicy) -> ExpertSizes | None:
    if not policy.copies:
        return None
    layers, experts, _ = _shape(config, cell)
    sizes = sizes_of(config.models[cell.model])
    layout = QuantizedLayout(sizes.config.text.expert_layout(sizes.layout.dtype), BITS[policy.copies])
    return ExpertSizes(layers, experts, layout.nbytes)


def _report(rows: Sequence[Row], command: str) -> list[Block]:
    waiting = {_place(row): row for row in rows if row["miss_policy"] == "wait"}
    titles = ["model", "size", "policy", "losses", "speed", "bytes", "deferred", "mass lost"]
    lines = [_line(row, waiting.get(_place(row))) for row in rows]
    return [
        Heading(1, "Lossy miss policies on full-size shapes"),
        Code(command),
        Paragraph(
            "Simulated at the GPU's published peaks and its link: the recorded routing of the trained model, carried "
            "over to the shape, is replayed under each policy. Speed and bytes are over waiting with as many slots. "
            "Accuracy is not simulated: losses would change the hidden states and so the later routing, which stays "
            "as recorded here. Copies of bfloat16 experts are a half and a quarter as large, and unpacking them takes "
            "no time."
        ),
        Grid(titles, lines, [False] * 4 + [True] * 4),
    ]


def _place(row: Row) -> tuple[str, str, float]:
    return row["model"], row["variant"], row["cache_fraction"]


def _line(row: Row, waiting: Row | None) -> list[str]:
    speed = f"{row['tokens_per_second'] / waiting['tokens_per_second']:.2f}x" if waiting else "-"
    moved = f"{row['bytes_transferred'] / waiting['bytes_transferred']:.2f}" if waiting else "-"
    names = [row["model"], f"{row['cache_fraction']:g}", row["variant"], row["miss_policy"]]
    return [*names, speed, moved, f"{row['deferred_rate']:.1%}", f"{row['discarded_mass']:.1%}"]
