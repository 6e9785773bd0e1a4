"""Measures how long each stage of a model takes on this machine, for the virtual clock. (DESIGN section 7.)

Every stage is timed on the shapes that a study gives it: after a warm-up, the median of repeated calls that wait for
their result. Axes: B sequences, T tokens, N = B * T, K top-k, C rows of one expert.
"""

import datetime
from pathlib import Path

import jax
import ml_collections
import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.files import make_folder, write_atomically
from expertflow_jax.harness.timing import median_seconds
from expertflow_jax.inference.loading import LoadedModel, load_model
from expertflow_jax.inference.rows import expert_rows
from expertflow_jax.locate import locate
from expertflow_jax.offload.slot_memory import place_experts
from expertflow_jax.predictor import Predictor, load_predictor
from expertflow_jax.processing.batching import Prompt, pad_prompts
from expertflow_jax.simulation.costs import ComputeCosts, Line

BATCHES = ((1, 1), (8, 1), (32, 1), (1, 32), (4, 32), (8, 32), (16, 32))  # (B, T)
EXPERT_ROUNDS = ((1, 1), (4, 1), (8, 1), (16, 2), (8, 8), (32, 8), (8, 32), (32, 16))  # (experts, rows of each)


def parse_grid(text: str) -> tuple[int, int, int]:
    """Patches of an image over time, height and width; raises InputError unless there are three numbers."""
    try:
        time_patches, height, width = (int(number) for number in text.split(","))
    except ValueError as error:
        raise InputError(f"--image_grid: {text!r}; write three numbers, for example 1,6,6") from error
    return time_patches, height, width


def run(config: ml_collections.ConfigDict, output: str, grid: tuple[int, int, int], repeats: int) -> None:
    """Times the config's model and predictor, writes the costs to `output` and prints them.

    Raises:
      InputError: no such model or predictor, or a file that cannot be written.
    """
    model = load_model(config.model, config.dtype)
    predictor = load_predictor(locate(config.predictor, "predictor"), expect_fingerprint=model.fingerprint)
    costs = measure_costs(model, predictor, grid, repeats)
    path = Path(output)
    make_folder(path.parent)
    write_atomically(path, costs.to_json())
    print(costs.to_json())


def measure_costs(
    model: LoadedModel, predictor: Predictor, image_grid: tuple[int, int, int], repeats: int = 20
) -> ComputeCosts:
    """Measures all stages.

    Args:
      model, predictor: what is served.
      image_grid: patches of a typical image in time, height and width.
      repeats: calls per measurement.
    """
    attend = [(b * t, _attend_seconds(model, b, t, repeats)) for b, t in BATCHES]
    router = [(b * t, _router_seconds(model, b, t, repeats)) for b, t in BATCHES]
    # A round's time is base + per_unit * rows + per_expert * experts: two of them from one fit over the rows with
    # the experts' share taken from rounds of one row each.
    rounds = [(n, c, _round_seconds(model, n, c, repeats)) for n, c in EXPERT_ROUNDS]
    single = Line.fit([n for n, c, _ in rounds if c == 1], [s for _, c, s in rounds if c == 1])
    rest = [(n * c, max(s - single.per_unit * n, 1e-9)) for n, c, s in rounds]
    experts = Line.fit(*zip(*rest, strict=True))
    head = [(b, _head_seconds(model, b, repeats)) for b in (1, 8, 32)]
    patches = int(np.prod(image_grid))
    vision = [(n * patches, _vision_seconds(model, n, image_grid, repeats)) for n in (1, 8, 16) if model.config.vision]
    forecast = [(b * t, _forecast_seconds(model, predictor, b, t, repeats)) for b, t in BATCHES]
    device = jax.local_devices()[0].device_kind
    return ComputeCosts(
        attend=Line.fit(*zip(*attend, strict=True)),
        experts=experts,
        per_expert=single.per_unit,
        head=Line.fit(*zip(*head, strict=True)),
        vision=Line.fit(*zip(*vision, strict=True)) if vision else Line(0.0, 0.0),
        predictor=Line.fit(*zip(*forecast, strict=True)),
        route=Line.fit(*zip(*router, strict=True)),
        recorded_on=f"{device}, {datetime.date.today().isoformat()}, {model.name}, {model.stages.dtype}",
    )


def _attend_seconds(model: LoadedModel, batch: int, tokens: int, repeats: int) -> float:
    stages, text = model.stages, model.config.text
    room = 40
    x = jax.numpy.ones((batch, tokens, text.hidden_size), stages.dtype)
    positions = np.zeros((3, batch, tokens), np.int32)
    start, lengths = np.zeros(batch, np.int32), np.full(batch, tokens, np.int32)
    shape = (batch, room, text.num_key_value_heads, text.head_dim)
    kv = jax.numpy.zeros(shape, stages.dtype), jax.numpy.zeros(shape, stages.dtype)
    layer = stages.moe_layers[-1]  # behind an encoder, a layer with cross-attention

    def call() -> np.ndarray:
        nonlocal kv
        attended = stages.attend_and_route(layer, x, kv, positions, start, lengths)
        kv = attended.kv
        return np.asarray(attended.ids)  # the host reads the choices, as in a step

    return median_seconds(call, repeats)


def _router_seconds(model: LoadedModel, batch: int, tokens: int, repeats: int) -> float:
    h = jax.numpy.ones((batch, tokens, model.config.text.hidden_size), model.stages.dtype)  # [B, T, D]
    layer = model.stages.moe_layers[-1]
    return median_seconds(lambda: np.asarray(model.stages.next_router(layer, h)), repeats)


def _round_seconds(model: LoadedModel, experts: int, rows: int, repeats: int) -> float:
    stages, text = model.stages, model.config.text
    sources = [model.store.source(e % model.store.num_experts) for e in range(experts)]
    buffers = place_experts(stages.form, sources).buffers
    top_k = text.num_experts_per_tok
    tokens = -(-experts * rows // top_k)
    y = jax.numpy.ones((tokens, text.hidden_size), stages.dtype)
    ids = np.full(tokens * top_k, -1, np.int32)
    ids[: experts * rows] = np.repeat(np.arange(experts), rows)
    groups = list(expert_rows(ids.reshape(tokens, top_k), experts, stages.form).groups(range(experts)))

    def call() -> jax.Array:
        out = stages.empty_output(tokens, top_k)
        for places, group in groups:
            out = stages.run_experts(out, y, group, [buffers[place] for place in places])
        return out

    return median_seconds(call, repeats)


def _head_seconds(model: LoadedModel, batch: int, repeats: int) -> float:
    x = jax.numpy.ones((batch, model.config.text.hidden_size), model.stages.dtype)
    return median_seconds(lambda: model.stages.head(x), repeats)


def _vision_seconds(model: LoadedModel, images: int, grid: tuple[int, int, int], repeats: int) -> float:
    assert model.config.vision is not None
    thw = np.tile(np.array(grid), (images, 1))
    pixels = np.zeros((images * int(np.prod(grid)), model.config.vision.patch_dim), np.float32)
    laid_out, where = model.config.vision_inputs(pixels, thw)
    return median_seconds(lambda: model.stages.vision(laid_out, where), repeats)


def _forecast_seconds(model: LoadedModel, predictor: Predictor, batch: int, tokens: int, repeats: int) -> float:
    prompts = [Prompt(np.full(tokens, 1, np.int32)) for _ in range(batch)]
    padded = pad_prompts(model.config, prompts)
    x, _ = model.embed(padded)
    x, lengths = x[:, :tokens], np.minimum(padded.lengths, tokens)
    return median_seconds(lambda: predictor.prefill(x, lengths)[0], repeats)
