"""A model of a published shape with random weights, and what it does: bits of groups, and decoding.

Axes: B sequences, T tokens, N = B * T, K top-k, E experts, D model width, V vocabulary.
"""

import dataclasses
import time
from typing import Any

import numpy as np

from expertflow_jax.inference.rows import expert_rows
from expertflow_jax.inference.served import serve
from expertflow_jax.models.device_form import DeviceForm
from expertflow_jax.offload.clock import RealClock
from expertflow_jax.offload.variant import RESIDENT, Variant
from expertflow_jax.processing.batching import Prompt, pad_prompts
from expertflow_jax.studies.doctor.findings import Finding, graded
from expertflow_jax.workloads import shapes

PROMPT_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class RandomModel:
    """What a session needs, with random weights."""

    stages: Any
    store: Any

    @staticmethod
    def of(shape: shapes.Shape, seed: int, form: DeviceForm | None = None) -> "RandomModel":
        """Of this shape; its experts lie in the form that suits the device, or in `form`."""
        return RandomModel(*shapes.build(shape, seed, form))


@dataclasses.dataclass(frozen=True)
class Decoded:
    """What a decode run gave; `logits` are float32 [B, V] of each step."""

    tokens_per_second: float
    hit_rate: float
    bytes_transferred: int
    seconds: float
    logits: list[np.ndarray]


def decode(
    model: RandomModel, variant: Variant, slots: int, batch_size: int, room: int, steps: int, seconds: float
) -> Decoded:
    """Greedy decoding of random prompts.

    Args:
      slots: expert slots.
      room: steps that the KV cache has room for, which decides what is compiled.
      steps: at most so many are run.
      seconds: after these no further step is begun.
    """
    vocabulary = model.stages.config.text.vocab_size
    ids_BxT = np.random.default_rng(0).integers(1, vocabulary, (batch_size, PROMPT_TOKENS)).astype(np.int32)
    batch = pad_prompts(model.stages.config, [Prompt(ids) for ids in ids_BxT])
    logits: list[np.ndarray] = []
    with serve(model, variant, slots, "direct", RealClock()) as session:
        x, deepstack = session.embed(batch)
        sequences = session.start(batch, room + 1)
        hidden = session.prefill(batch, sequences, x, deepstack, None)
        read = session.last_logits(hidden, batch.lengths).argmax(axis=1)
        active, one = np.ones(batch_size, bool), np.ones(batch_size, np.int32)
        session.engine.reset_stats()
        begin = time.perf_counter()
        while len(logits) < steps and time.perf_counter() - begin < seconds:
            x = session.stages.embed(read[:, None].astype(np.int32), None, None)
            logits.append(session.last_logits(session.decode(sequences, x, active, None), one))
            read = logits[-1].argmax(axis=1)
        taken = time.perf_counter() - begin
        stats = session.engine.stats()
    tokens = batch_size * len(logits)
    return Decoded(tokens / taken, stats["hit_rate"], stats["bytes_transferred"], taken, logits)


def group_finding(model: RandomModel) -> Finding:
    """Whether experts give the same bits in one group as each alone."""
    stages, text = model.stages, model.stages.config.text
    count, top_k = min(8, text.num_experts), text.num_experts_per_tok
    tokens = -(-count // top_k)
    ids_NxK = (np.arange(tokens * top_k) % count).reshape(tokens, top_k).astype(np.int32)
    rows = expert_rows(ids_NxK, text.num_experts, stages.form)
    y = np.random.default_rng(0).standard_normal((1, tokens, text.hidden_size)).astype(stages.dtype)
    with serve(model, RESIDENT, clock=RealClock()) as session:
        session.engine.begin_step(None)
        [(experts, buffers)] = session.engine.rounds(0, np.arange(count, dtype=np.int32))

        def outputs(*groups: range) -> np.ndarray:  # [N * K + 1, D]
            out = stages.empty_output(tokens, top_k)
            for group in groups:
                for places, group_rows in rows.groups([experts[position] for position in group]):
                    out = stages.run_experts(out, y, group_rows, [buffers[group[place]] for place in places])
            return np.asarray(out, np.float32)[: tokens * top_k]

        together = outputs(range(count))
        alone = outputs(*(range(position, position + 1) for position in range(count)))
        session.engine.end_step()
    differing = int((together != alone).sum())
    return Finding(
        f"bits of groups of 1 and {count}",
        "equal" if not differing else f"{differing} of {together.size} numbers differ",
        "bad" if differing else "good",
        "runs with a cache are not bit-identical to resident ones here; report it" if differing else "",
        {"differing": differing, "numbers": int(together.size), "form": stages.form.slots},
    )


def decode_findings(model: RandomModel, batch_size: int, steps: int, seconds: float, raw: float) -> list[Finding]:
    """Decoding with everything resident and with slots for half of the experts.

    Args:
      seconds: for both together.
      raw: bytes per second of the link.
    """
    everything = model.store.num_layers * model.store.num_experts
    half = Variant.of("on_demand")
    runs = []
    for variant, slots in ((RESIDENT, everything), (half, everything // 2)):
        decode(model, variant, slots, batch_size, steps, 2, seconds)  # compiles
        runs.append(decode(model, variant, slots, batch_size, steps, steps, seconds / 2))
    resident, cached = runs
    pairs = list(zip(resident.logits, cached.logits, strict=False))
    equal = all((first == second).all() for first, second in pairs)
    linked = cached.bytes_transferred / raw / cached.seconds
    speed = cached.tokens_per_second / resident.tokens_per_second
    return [
        Finding(
            "decode, resident",
            f"{resident.tokens_per_second:.1f} tokens/s, batch {batch_size}",
            "good" if np.isfinite(resident.logits[-1]).all() else "bad",
            "",
            {"tokens_per_second": resident.tokens_per_second, "batch_size": batch_size},
        ),
        Finding(
            "decode, half the experts",
            f"{cached.tokens_per_second:.1f} tokens/s, hit rate {cached.hit_rate:.2f}; the link works {linked:.2f}",
            graded(max(linked, speed), 0.7, 0.4),
            "" if max(linked, speed) >= 0.7 else "neither link nor compute is busy: the host is what it waits for",
            {
                "tokens_per_second": cached.tokens_per_second,
                "hit_rate": cached.hit_rate,
                "link_share": linked,
                "of_resident": speed,
            },
        ),
        Finding(
            "bits, half and resident",
            f"{len(pairs)} steps " + ("equal" if equal else "differ"),
            "good" if equal else "bad",
            "" if equal else "a lossless policy should give the resident run's bits; report it",
            {"steps": len(pairs), "equal": equal},
        ),
    ]
