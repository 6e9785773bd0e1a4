"""What a routing trace says: signatures, distinct experts per batch, popularity, entropy, locality.

Routing signatures follow Task-Conditioned Routing Signatures (2603.11114; `studies.routing` compares them); distinct
experts per batch is the quantity that ExpertFlow's token scheduler lowers (2410.17954).
Axes: N sequences, T tokens, L MoE layers, E experts, K top-k, B batch.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32, Float64

from expertflow_jax.errors import InputError
from expertflow_jax.routing.trace import RoutingTrace

SIGNATURES = ("counts", "frequencies", "used")


def signatures(trace: RoutingTrace, *, kind: str = "frequencies", phase: str = "all") -> Float32[np.ndarray, "N L E"]:
    """Each sequence's use of the experts.

    Args:
      kind: "counts" (tokens that chose the expert), "frequencies" (counts over the layer's choices; rows sum to 1, or
        to 0 without tokens) or "used" (1 if any token chose it).
      phase: "all", "prompt" or "decode" tokens.

    Raises:
      InputError: unknown kind or phase.
    """
    if kind not in SIGNATURES:
        raise InputError(f"signature kind {kind!r}: choose one of {', '.join(SIGNATURES)}")
    n, _, layers, _ = trace.experts.shape
    experts_NxTxLxK = np.where(trace.token_mask(phase)[:, :, None, None], trace.experts, -1)
    sequence, _, layer, _ = np.nonzero(experts_NxTxLxK >= 0)
    flat = (sequence * layers + layer) * trace.num_experts + experts_NxTxLxK[experts_NxTxLxK >= 0]
    flat_counts = np.bincount(flat, minlength=n * layers * trace.num_experts).astype(np.float32)
    counts_NxLxE = flat_counts.reshape(n, layers, trace.num_experts)
    if kind == "used":
        return (counts_NxLxE > 0).astype(np.float32)
    if kind == "frequencies":
        return counts_NxLxE / np.maximum(counts_NxLxE.sum(-1, keepdims=True), 1.0)
    return counts_NxLxE


def popularity(trace: RoutingTrace, *, phase: str = "all") -> Float64[np.ndarray, "L E"]:
    """Fraction of the tokens routed at a layer that chose the expert (a row sums to K)."""
    counts_LxE = signatures(trace, kind="counts", phase=phase).sum(0, dtype=np.float64)
    experts_NxTxLxK = np.where(trace.token_mask(phase)[:, :, None, None], trace.experts, -1)
    tokens = (experts_NxTxLxK >= 0).any(3).sum((0, 1))
    return counts_LxE / np.maximum(tokens, 1)[:, None]


def usage_entropy(trace: RoutingTrace, *, phase: str = "all") -> Float64[np.ndarray, " L"]:
    """Entropy of each layer's expert use in bits; log2(E) when all are equally popular."""
    popularity_LxE = popularity(trace, phase=phase)
    share_LxE = popularity_LxE / np.maximum(popularity_LxE.sum(-1, keepdims=True), 1e-300)
    return -(share_LxE * np.log2(np.where(share_LxE > 0, share_LxE, 1.0))).sum(-1)


def distinct_experts(
    trace: RoutingTrace, batch_size: int, *, trials: int = 200, seed: int = 0, phase: str = "all"
) -> Float64[np.ndarray, " L"]:
    """Mean number of distinct experts that a random batch activates per layer.

    Batches are `batch_size` sequences drawn without replacement. With phase "decode" a batch's decode tokens all count,
    so for one step's number see `distinct_experts_per_step`.

    Raises:
      InputError: `batch_size` is not between 1 and N.
    """
    if not 1 <= batch_size <= len(trace):
        raise InputError(f"batch size {batch_size}: the trace has {len(trace)} sequences")
    used_NxLxE = signatures(trace, kind="used", phase=phase) > 0
    rng = np.random.default_rng(seed)
    picks = [rng.choice(len(trace), batch_size, replace=False) for _ in range(trials)]
    return np.mean([used_NxLxE[pick].any(0).sum(-1) for pick in picks], axis=0)


def distinct_experts_per_step(
    trace: RoutingTrace, batch_size: int, *, trials: int = 200, seed: int = 0
) -> Float64[np.ndarray, " L"]:
    """Mean distinct experts in one decode step of a random batch (step 1 of `batch_size` sequences that decode at least
    once). Raises InputError if fewer sequences than that decode."""
    decoding = np.flatnonzero(trace.lengths > trace.prompt_lengths)
    if not 1 <= batch_size <= len(decoding):
        raise InputError(f"batch size {batch_size}: {len(decoding)} sequences of the trace decode")
    rng = np.random.default_rng(seed)
    first_NxLxK = trace.experts[decoding, trace.prompt_lengths[decoding]]
    counts = np.zeros((trials, trace.num_layers))
    for trial in range(trials):
        batch_BxLxK = first_NxLxK[rng.choice(len(decoding), batch_size, replace=False)]
        for layer in range(trace.num_layers):
            counts[trial, layer] = np.sum(np.unique(batch_BxLxK[:, layer]) >= 0)
    return counts.mean(0)


@dataclasses.dataclass(frozen=True)
class Locality:
    """How much of a token's experts the token before it used too.

    Attributes:
      overlap: mean |experts(t) & experts(t-1)| / |experts(t)|; NaN without such pairs.
      expected: the same for two tokens drawn independently by popularity.
      pairs: successive tokens compared.
    """

    overlap: Float64[np.ndarray, " L"]
    expected: Float64[np.ndarray, " L"]
    pairs: int


def temporal_locality(trace: RoutingTrace, *, phase: str = "decode") -> Locality:
    """Overlap between successive tokens of a sequence; "decode": a decoded token and the one before it."""
    mask = trace.token_mask(phase)[:, 1:]
    now, before = trace.experts[:, 1:][mask], trace.experts[:, :-1][mask]  # [pairs, L, K] each
    chosen = now >= 0
    shared = (now[..., :, None] == before[..., None, :]).any(-1) & chosen
    with np.errstate(invalid="ignore"):
        overlap = shared.sum((0, 2)) / chosen.sum((0, 2))
        share_LxE = popularity(trace, phase=phase)
        expected = (share_LxE**2).sum(-1) / share_LxE.sum(-1)
    return Locality(overlap, expected, int(mask.sum()))
