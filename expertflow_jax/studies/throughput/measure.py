"""One repeat of one variant under the real clock, and what it counted.

Axes: S slots, L MoE layers, E experts.
"""

import dataclasses
import gc
import time
from typing import Any

import numpy as np

from expertflow_jax.harness import timeline
from expertflow_jax.inference.device_memory import bytes_in_use
from expertflow_jax.inference.members import needed_by_super_step
from expertflow_jax.inference.rows import expert_rows
from expertflow_jax.inference.served import serve
from expertflow_jax.offload.clock import Event, RealClock
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.offload.variant import Variant
from expertflow_jax.workloads.window_forecasts import make_forecasters
from expertflow_jax.workloads.windows import Window


@dataclasses.dataclass(frozen=True)
class Repeat:
    """What one run of a window gave.

    Attributes:
      seconds: from before the first step until the host had the last logits.
      stats: the engine's.
      events: timeline of the window.
      overlap: see `timeline.overlap`.
      peak_device_bytes: largest sum of what lived on the device for this run; 0 if not sampled.
      needed: bool [super-steps, L, E].
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
    """Compiles every group of experts that the steps may run: which they do depends on when experts arrive, and
    a model that routes for itself may choose a little differently than recorded."""
    stages, num_experts = window.setup.own_stages, window.setup.store.num_experts
    most_rows: dict[tuple[int, int], int] = {}  # by (B, T)
    for ids_BxTxLxK in (ids for members in window.routing() for ids in members):
        batch, length, layers, top_k = ids_BxTxLxK.shape
        for layer in range(layers):
            counts = expert_rows(ids_BxTxLxK[:, :, layer].reshape(-1, top_k), num_experts).counts
            most_rows[batch, length] = max(int(counts.max()), most_rows.get((batch, length), 1))
    for (batch, length), most in most_rows.items():
        stages.precompile(batch, [length], 2 * most)


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
        started = window.start(session)
        forecasters = make_forecasters(window, variant, truth, session, started)
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
        needed = np.stack(needed_by_super_step(session.records))
        own = setup.own_stages.dense_bytes + (setup.predictor.nbytes if variant.forecast == "predictor" else 0)
        peak = session.peak_device_bytes - before + own if sample_memory else 0
    return Repeat(seconds, stats, events, timeline.overlap(events), peak, needed, inside)
