"""All resident through the engine, beside the fused whole-model jit and beside Hugging Face transformers, in turns.

The same weights and token ids, no padding, every model routing for itself, so that all compute the same.
Axes: B sequences, T tokens.
"""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from expertflow_jax.checkpoints import save_hf
from expertflow_jax.inference.forecasting import NoForecast
from expertflow_jax.models.causal_lm import CausalLM
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.offload.variant import RESIDENT
from expertflow_jax.processing.batching import Prompt
from expertflow_jax.studies.throughput import fused
from expertflow_jax.studies.throughput.measure import run_once
from expertflow_jax.studies.throughput.reference import ReferenceProcess
from expertflow_jax.workloads.setups import Setup
from expertflow_jax.workloads.windows import PHASES, Window, make_window

PROMPT_TOKENS = 24


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Seconds of one window, run by `contender` and by the engine with everything resident.

    Attributes:
      tokens: of the window.
      engine_seconds, contender_seconds: one per repeat, in turns.
    """

    model: str
    phase: str
    batch_size: int
    contender: str
    tokens: int
    engine_seconds: list[float]
    contender_seconds: list[float]

    @property
    def ratio(self) -> float:
        """The engine's throughput over the contender's, of medians."""
        return float(np.median(self.contender_seconds) / np.median(self.engine_seconds))


def compare(setup: Setup, batch_size: int, new_tokens: int, repeats: int, python: str) -> list[Comparison]:
    """Measures both phases.

    Args:
      setup: a text model.
      python: an interpreter with torch and transformers, or "" to leave them out.

    Raises:
      InputError: the interpreter does not work.
    """
    rng = np.random.default_rng(0)
    vocabulary = setup.config.text.vocab_size
    prompts = [Prompt(rng.integers(8, vocabulary, PROMPT_TOKENS).astype(np.int32)) for _ in range(batch_size)]
    setup = dataclasses.replace(setup, prompts=prompts, stages=setup.own_stages)
    stacked = fused.stacked_experts(setup)
    comparisons = []
    with tempfile.TemporaryDirectory() as folder:
        reference = None
        if python:
            write_checkpoint(setup, stacked, Path(folder))
            reference = ReferenceProcess(python, Path(folder), [p.input_ids.tolist() for p in prompts], new_tokens)
        try:
            for phase in PHASES:
                window = make_window(setup, phase, batch_size, 1, new_tokens)
                window.fill_caches()
                runs: dict[str, Callable[[], float]] = {
                    f"fused ({kernel})": _fused_run(window, stacked, kernel) for kernel in fused.KERNELS
                }
                if reference is not None:
                    runs[reference.name] = functools.partial(reference.run, phase)
                comparisons += _in_turns(window, runs, repeats)
        finally:
            if reference is not None:
                reference.close()
    return comparisons


def _in_turns(window: Window, runs: dict[str, Callable[[], float]], repeats: int) -> list[Comparison]:
    def engine() -> float:
        return run_once(window, RESIDENT, 0, LinkSpec()).seconds

    seconds: dict[str, list[float]] = {name: [] for name in ("engine", *runs)}
    for turn in range(repeats + 2):
        for name, run in {"engine": engine, **runs}.items():
            taken = run()
            if turn >= 2:  # the first two compile and warm up
                seconds[name].append(taken)
    setup = window.setup
    return [
        Comparison(setup.name, window.phase, window.batch_size, name, window.tokens, seconds["engine"], seconds[name])
        for name in runs
    ]


def _fused_run(window: Window, stacked: fused.Stacked, kernel: str) -> Callable[[], float]:
    session: Any = fused.FusedSession(window.setup.own_stages, stacked, kernel)

    def run() -> float:
        started = window.start(session)
        begin = time.perf_counter()
        window.run(session, started, [NoForecast() for _ in window.batches])
        return time.perf_counter() - begin

    return run


def write_checkpoint(setup: Setup, stacked: fused.Stacked, folder: Path) -> None:
    """The setup's model as transformers reads it, float32."""
    module = CausalLM(setup.config, rngs=nnx.Rngs(0))
    for position, (_, state) in enumerate(zip(module.layers, setup.own_stages.layer_states, strict=True)):
        nnx.update(module.layers[position], state)
    trunk = setup.own_stages.trunk
    nnx.update(module, trunk)
    for layer, (gate_up, down) in enumerate(stacked):
        experts: Any = module.experts[layer]
        experts.gate_up[...], experts.down[...] = gate_up, down
    save_hf(folder, setup.config, module, np.dtype(np.float32))
