"""How long a whole evaluation would take on a full-size model, batch by batch and in blocks: what `eval.plan` prints.

A window of recorded questions is replayed on the virtual clock (`studies.blocks`), and its time multiplied by the
questions of the data set. Axis: M batches of a block.
"""

import dataclasses
from collections.abc import Sequence

import jax
import ml_collections
from flax import nnx
from rich.console import Console

from expertflow_jax.checkpoints.families import family_of
from expertflow_jax.errors import InputError
from expertflow_jax.harness.cells import Axis, made_by, number, one_of, values
from expertflow_jax.harness.document import Grid
from expertflow_jax.harness.report import plain
from expertflow_jax.offload.budget import format_bytes, parse_bytes
from expertflow_jax.offload.variant import Variant
from expertflow_jax.simulation.gpus import GPUS
from expertflow_jax.simulation.machines import gpu_machine
from expertflow_jax.studies.blocks.measure import measure
from expertflow_jax.studies.blocks.memory import block_plan, predictor_of, request_size, sizes_of
from expertflow_jax.studies.blocks.traces import Traces
from expertflow_jax.workloads.shapes import find_shape


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What is to be evaluated.

    Attributes:
      questions: how many.
      prompt_tokens, image_tokens: of each, the image's among them.
      new_tokens: decode steps after the prompt.
    """

    name: str
    questions: int
    prompt_tokens: int
    image_tokens: int
    new_tokens: int


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One way to run it.

    Attributes:
      slots: experts that fit beside the block.
      hours, resident_hours: of the whole data set; and if every expert were on the device.
    """

    variant: str
    batches_per_block: int
    slots: int
    hours: float
    resident_hours: float


def show_hours(config: ml_collections.ConfigDict) -> None:
    """Prints a line for each data set and card of the config, and what was assumed.

    Raises:
      InputError: values that cannot be, or cards that hold no batch at all.
    """
    data_sets = [_data_set(place, entry) for place, entry in enumerate(config.data_sets)]
    cards = [_card(place, entry) for place, entry in enumerate(config.cards)]
    axes = (
        Axis("variants", made_by(Variant.of, lambda variant: Variant.of(variant).label)),
        Axis("batches_per_block", number(1, config.sequences // config.batch_size, unit="blocks of one window")),
    )
    variants, sizes = values("config key ", config, axes)
    one_of(tuple(config.models))("config key served", config.served)
    traces = Traces(config, config.sequences)
    lines = []
    for data in data_sets:
        for gpu, budget in cards:
            ways = [
                way
                for size in sorted({1, *sizes})
                for variant in variants
                if (way := _estimate(config, traces, data, gpu, budget, variant, size)) is not None
            ]
            lines.append(_line(data, gpu, budget, ways))
    console = Console(highlight=False, soft_wrap=True)
    titles = ("data set", "questions", "card", "M = 1", "slots", "hours", "best M", "slots", "hours", "resident")
    right = (False, True, False, False, True, True, False, True, True, True)
    console.print(plain(Grid(titles, lines, right)), markup=False)
    for sentence in assumptions(config, data_sets):
        console.print(f"- {sentence}", markup=False)


def assumptions(config: ml_collections.ConfigDict, data_sets: Sequence[DataSet]) -> list[str]:
    """What the hours rest on, in sentences."""
    sizes = "; ".join(
        f"{data.name}: prompts of {data.prompt_tokens} tokens, {data.image_tokens} of them the image's, and "
        f"{data.new_tokens} decode steps"
        for data in data_sets
    )
    sequences, size = config.sequences, config.batch_size
    return [
        f"{config.served} in bfloat16, batches of {size}; {sizes}.",
        f"A window of {sequences} questions, replayed from a cache that holds experts in index order, stands for all: "
        "its routing is the trained model's, carried over, and longer prompts are several recorded ones in a row.",
        "Compute and link at the card's published peaks, the vision tower and the predictor included; reading images "
        "and tokenizing overlap. A real card is slower: compute takes longer, and hides more of the transfers.",
        "All questions wait at the beginning; the KV caches and hidden states of the block count in the memory.",
    ]


def _estimate(
    config: ml_collections.ConfigDict, traces: Traces, data: DataSet, gpu: str, budget: str, variant: str, size: int
) -> Estimate | None:
    """None: the card does not hold so many batches."""
    directory, kind = config.models[config.served], Variant.of(variant)
    forecasts = kind.forecast == "predictor"
    request = request_size(
        sizes_of(directory), config.batch_size, data.prompt_tokens, data.new_tokens + 1, data.image_tokens
    )
    try:
        plan = block_plan(directory, request, size, forecasts=forecasts, memory_budget=budget)
    except InputError:
        return None
    batches = traces.batches(config.served, config.sequences, data.prompt_tokens, data.new_tokens)
    layer = find_shape(config.served).full
    machine = gpu_machine(gpu, layer, predictor_of(directory).nbytes if forecasts else 0)
    outcome = measure(batches, kind, size, machine, plan.slots)
    vision = 2 * vision_parameters(directory) * request.image_patches / (GPUS[gpu].teraflops * 1e12)
    sequences = config.batch_size * len(batches)

    def hours(seconds: float) -> float:
        return data.questions * (seconds / sequences + vision) / 3600

    wall = outcome.stats["wall_seconds"]
    return Estimate(variant, size, plan.slots, hours(wall), hours(outcome.resident_seconds))


def vision_parameters(directory: str) -> int:
    """Of the model's vision tower; 0 without one."""
    sizes = sizes_of(directory)
    if sizes.config.vision is None:
        return 0
    family = family_of(sizes.config)
    module = nnx.eval_shape(lambda: family.module(sizes.config, rngs=nnx.Rngs(0), with_experts=False))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module.vision)))


def _line(data: DataSet, gpu: str, budget: str, ways: Sequence[Estimate]) -> tuple[str, ...]:
    start = (data.name, f"{data.questions}", f"{gpu}, {budget}")
    if not ways:
        return *start, "no batch fits", *[""] * 6
    alone = min((way for way in ways if way.batches_per_block == 1), key=lambda way: way.hours)
    best = min(ways, key=lambda way: way.hours)
    return (
        *start,
        alone.variant,
        f"{alone.slots}",
        f"{alone.hours:.2f}",
        f"{best.batches_per_block}, {best.variant}",
        f"{best.slots}",
        f"{best.hours:.2f}",
        f"{best.resident_hours:.2f}",
    )


def _data_set(place: int, entry: Sequence) -> DataSet:
    where = f"config key data_sets[{place}]"
    if isinstance(entry, str) or len(entry) != 5:
        raise InputError(f"{where}: {entry!r}; write (name, questions, prompt tokens, image tokens, decode steps)")
    name, *counts = entry
    least = (1, 1, 0, 0)
    return DataSet(str(name), *(number(low)(where, count) for low, count in zip(least, counts, strict=True)))


def _card(place: int, entry: Sequence) -> tuple[str, str]:
    where = f"config key cards[{place}]"
    if isinstance(entry, str) or len(entry) != 2:
        raise InputError(f"{where}: {entry!r}; write (GPU, device memory)")
    gpu, budget = entry
    return one_of(GPUS)(where, gpu), format_bytes(parse_bytes(budget))
