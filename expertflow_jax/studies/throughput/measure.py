"""One repeat of one variant under the real clock, and what it counted.

Axes: S slots, L MoE layers, E experts.
"""

import dataclasses
import gc
import itertools
import time
from typing import Any

import jax
import numpy as np

from expertflow_jax.harness import timeline
from expertflow_jax.inference.device_memory import bytes_in_use
from expertflow_jax.inference.rows import GROUP_SIZES, SMALLEST_ROWS, expert_rows
from expertflow_jax.inference.served import serve
from expertflow_jax.offload.clock import Event, RealClock
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.offload.variant import Variant
from expertflow_jax.workloads.windows import Window, make_forecasters


@dataclasses.dataclass(frozen=True)
class Repeat:
    """What one run of a window gave.

    Attributes:
      seconds: from before the first step until the host had the last logits.
      stats: the engine's.
      events: timeline of the window.
      overlap: see `timeline.overlap`.
      peak_device_bytes: largest sum of what lived on the device for this run; 0 if not sampled.
      needed: bool [steps, L, E].
      inside: keys in the slots at the beginning.
    """

    seconds: float
    stats: dict[str, Any]
    events: list[Event]
    overlap: float | None
    peak_device_bytes: int
    needed: np.ndarray
    inside: list[int]


def compile_groups(window: Window) -> None:
    """Compiles every group of experts that a round may consist of: which do depends on when experts arrive, and a model
    that routes for itself may choose a little differently than recorded."""
    stages, text = window.setup.own_stages, window.setup.config.text
    found: dict[tuple[int, int], int] = {}  # the most rows of an expert, padded
    for ids in window.routing():
        batch, length, layers, top_k = ids.shape
        for layer in range(layers):
            layer_rows = expert_rows(ids[:, :, layer].reshape(-1, top_k), window.setup.store.num_experts)
            most = max((layer_rows.padded(int(expert)) for expert in layer_rows.needed), default=1)
            found[batch, length] = max(most, found.get((batch, length), 1))
    # on the device by `device_put`, as slots and parameters are: arrays made by jnp count as others to the jit cache
    memory = jax.sharding.SingleDeviceSharding(jax.local_devices()[0], memory_kind="device")
    expert = tuple(jax.device_put(np.zeros(s, stages.layout.dtype), memory) for s in stages.layout.part_shapes)
    for (batch, length), most in found.items():
        y = jax.device_put(np.zeros((batch, length, text.hidden_size), stages.dtype), memory)
        paddings = [1 << n for n in range(most.bit_length() + 1) if 1 << n >= min(most, SMALLEST_ROWS)]
        for padding, size in itertools.product(paddings, GROUP_SIZES):
            out = stages.empty_output(batch * length, text.num_experts_per_tok)
            rows = np.full((size, padding), len(out) - 1, np.int32)
            for _ in range(2):  # a step's first group, and one that goes on
                out = stages.run_experts(out, y, rows, [expert] * size)


def run_once(
    window: Window,
    variant: Variant,
    slots: int,
    link: LinkSpec,
    truth: np.ndarray | None = None,
    sample_memory: bool = False,
) -> Repeat:
    """Runs the window once from a warm cache.

    Args:
      slots: S; a policy that keeps everything takes as many as there are experts.
      truth: what each step needs, for variants that know it.
      sample_memory: look at what lives on the device, which takes time of its own.
    """
    setup = window.setup
    gc.collect()
    before = bytes_in_use()
    clock = RealClock()
    with serve(setup, variant, slots, link, clock) as session:
        engine = session.engine
        inside = engine.pool.key_of[engine.pool.key_of >= 0].tolist()
        session.records, session.samples_memory = [], sample_memory
        forecasters = make_forecasters(window, variant, truth, session)
        started = window.start(session)
        if setup.replayed:
            setup.stages.foretell(window.routing())
        gc.disable()
        try:
            clock.timeline = []
            engine.reset_stats()
            begin = time.perf_counter()
            window.run(session, started, forecasters)
            seconds = time.perf_counter() - begin
            stats = engine.stats()
        finally:
            gc.enable()
        events = timeline.with_compute(list(clock.timeline), begin, begin + seconds)
        needed = np.stack([record.needed for record in session.records])
        own = setup.own_stages.dense_bytes + (setup.predictor.nbytes if variant.forecast == "predictor" else 0)
        peak = session.peak_device_bytes - before + own if sample_memory else 0
    return Repeat(seconds, stats, events, timeline.overlap(events), peak, needed, inside)
