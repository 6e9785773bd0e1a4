"""What the simulator says of the windows that were timed, with costs taken in the same run.

The policy objects, the engine and the routing are those of the timed run; clock, link and stages are simulated. Costs
of a cell: a round of experts is timed by itself on the window's own rows; what the resident run takes beyond its rounds
is what every layer-step takes besides experts, host and head included; the predictor is timed by itself on the window's
tokens. So the resident run calibrates and the others are foretold.
Axes: B sequences, T tokens, L MoE layers, E experts, K top-k.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from scipy.optimize import nnls

from expertflow_jax.harness.timing import median_seconds
from expertflow_jax.inference.forecasting import Queue, join_horizon
from expertflow_jax.inference.rows import expert_rows
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.offload.variant import RESIDENT, Variant, new_engine
from expertflow_jax.predictor.forecast import combine_batches, wants_nearly_all
from expertflow_jax.simulation.costs import ComputeCosts, Line
from expertflow_jax.simulation.replay import ReplayStep, replay, together, true_horizons
from expertflow_jax.workloads.windows import Window, at_the_end

REPEATS = 5
ROUNDS = (1, 2, 4, 8)  # experts of a round that is timed, beside all of a layer-step
NOTHING = Line(0.0, 0.0)


def simulated_seconds(
    window: Window, variant: Variant, slots: int, link: LinkSpec, costs: ComputeCosts
) -> float | None:
    """Of one run of the window; None where nothing is to be foretold: of the run that calibrated, of a link whose speed
    is not stated, of a policy that asks routers (random ones, where routing is replayed)."""
    if variant.whole or variant.forecast == "hidden" or not link.emulated:
        return None
    return _replayed_seconds(window, variant, slots, link, costs)


def _replayed_seconds(window: Window, variant: Variant, slots: int, link: LinkSpec, costs: ComputeCosts) -> float:
    steps, store = window_steps(window), window.setup.store
    if variant.forecast == "truth":
        known = true_horizons(steps, window.num_steps)
        steps = [dataclasses.replace(step, predicted=False) for step in known]
    elif variant.forecast == "predictor":
        steps = predicted_steps(window, steps)
    sizes = ExpertSizes(store.num_layers, store.num_experts, store.expert_bytes)
    with new_engine(sizes, variant, slots, link) as engine:
        return replay(engine, steps, costs)["wall_seconds"]


def window_steps(window: Window) -> list[ReplayStep]:
    """The super-steps of the window, without a forecast."""
    experts, steps = window.setup.store.num_experts, []
    for number, members in enumerate(window.routing()):
        begins = window.phase == "prefill" or number % window.new_tokens == 0
        parts = [
            ReplayStep(int((ids_BxTxLxK[:, :, 0, 0] >= 0).sum()), _layer_rows(ids_BxTxLxK, experts), begins=begins)
            for ids_BxTxLxK in members
        ]
        steps.append(together(parts))
    return steps


def _layer_rows(ids_BxTxLxK: np.ndarray, experts: int) -> np.ndarray:
    """int [L, E]."""
    layers = np.moveaxis(ids_BxTxLxK, 2, 0)
    return np.stack([np.bincount(ids[ids >= 0], minlength=experts) for ids in layers])


def predicted_steps(window: Window, steps: Sequence[ReplayStep]) -> list[ReplayStep]:
    """The same super-steps with the predictor's forecasts, as `make_forecasters` and `Window.run` give them."""
    setup, blocks = window.setup, window.blocks
    top_k, per_block = setup.config.text.num_experts_per_tok, len(steps) // len(blocks)
    forecast: list[ReplayStep] = []
    queue: Queue = ()
    for n, pairs in reversed(list(enumerate(window.forecasts()))):
        block = []
        for g, (now, following) in enumerate(pairs):
            step, last = steps[n * per_block + g], g + 1 == per_block
            certain = wants_nearly_all(step.tokens, top_k, now.shape[1])
            if certain:
                now, following = np.ones_like(now), np.ones_like(following)
            horizon = join_horizon(now, [] if last else [following], queue, int(last))
            block.append(dataclasses.replace(step, horizon=horizon, predicted=not certain))
        if window.phase == "prefill":
            assert block[0].horizon is not None
            queue = [block[0].horizon[0]]
        else:
            queue = [combine_batches([at_the_end(setup.following, b) for b in blocks[n]])]
        forecast = block + forecast
    return forecast


def measured_costs(window: Window, resident_seconds: float) -> ComputeCosts:
    """Of this window's steps on this machine, now. Args: resident_seconds: of the window with everything at hand."""
    rounds, single = _round_costs(window)
    bare = ComputeCosts(NOTHING, rounds, single, NOTHING, NOTHING, NOTHING)
    busy = _replayed_seconds(window, RESIDENT, 0, LinkSpec(), bare)
    scale = min(1.0, resident_seconds / busy)
    layer_steps = len(window.batches) * window.num_steps // len(window.blocks) * window.setup.store.num_layers
    return ComputeCosts(
        attend=Line((resident_seconds - scale * busy) / layer_steps, 0.0),
        experts=Line(scale * rounds.base, scale * rounds.per_unit),
        per_expert=scale * single,
        head=NOTHING,
        vision=NOTHING,
        predictor=Line(_predictor_seconds(window), 0.0),
    )


def _round_costs(window: Window) -> tuple[Line, float]:
    """Seconds of a round over its rows, and of each expert in it: rounds of several sizes in the window's first and
    last step."""
    store = window.setup.store
    samples: list[tuple[int, int, float]] = []  # rows, experts, seconds
    routing = window.routing()
    for members in (routing[0], routing[-1]):
        ids_BxTxLxK = members[0]
        for layer in sorted({0, store.num_layers - 1}):
            samples += _timed_rounds(window, layer, ids_BxTxLxK[:, :, layer])
    rows, experts, seconds = (np.array(column, float) for column in zip(*samples, strict=True))
    measured = np.stack([np.ones_like(rows), rows, experts], axis=1)
    (base, per_row, per_expert), _ = nnls(measured / seconds[:, None], np.ones_like(seconds))
    return Line(float(base), float(per_row)), float(per_expert)


def _timed_rounds(window: Window, layer: int, ids_BxTxK: np.ndarray) -> list[tuple[int, int, float]]:
    """(rows, experts, seconds) of rounds of a layer-step."""
    setup, stages = window.setup, window.setup.own_stages
    batch, length, top_k = ids_BxTxK.shape
    rows = expert_rows(ids_BxTxK.reshape(-1, top_k), setup.store.num_experts, stages.form)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0], memory_kind="device")
    first = layer * setup.store.num_experts
    buffers = {e: tuple(jax.device_put(setup.store.source(first + e), device)) for e in rows.needed.tolist()}
    y = jax.device_put(np.zeros((batch, length, setup.config.text.hidden_size), stages.dtype), device)

    def empty() -> Any:
        return stages.empty_output(batch * length, top_k)

    overhead = median_seconds(empty, REPEATS)
    samples = []
    for size in sorted({size for size in ROUNDS if size < len(buffers)} | {len(buffers)}):
        experts = rows.needed[:size].tolist()
        groups = list(rows.groups(experts))

        def run(experts: list[int] = experts, groups: list[Any] = groups) -> Any:
            out = empty()
            for places, group in groups:
                out = stages.run_experts(out, y, group, [buffers[experts[place]] for place in places])
            return out

        seconds = max(median_seconds(run, REPEATS) - overhead, 1e-6)
        samples.append((int(rows.counts[experts].sum()), size, seconds))
    return samples


def _predictor_seconds(window: Window) -> float:
    """Of one super-step of the first block."""
    predictor, block = window.setup.predictor, window.blocks[0]
    sequences = np.concatenate([b.rows for b in block])
    lengths = np.concatenate([b.batch.lengths for b in block])
    embeddings_NxTxD = window.setup.recording.embeddings[sequences]
    if window.phase == "prefill":
        prompts = embeddings_NxTxD[:, : lengths.max()]
        return median_seconds(lambda: predictor.forecast(prompts, lengths)[0], REPEATS)
    token_Nx1xD = embeddings_NxTxD[np.arange(len(lengths)), lengths][:, None]
    caches = [predictor.forecast(embeddings_NxTxD[:, : lengths.max()], lengths)[1]]

    def step() -> Any:
        use, caches[0] = predictor.forecast(token_Nx1xD, None, caches[0])
        return use

    return median_seconds(step, REPEATS)
