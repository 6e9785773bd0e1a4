"""A predictor's forecasts of whole trace sets, and the calibration of its probabilities to what the traces used.

Axes: N sequences, B batch, T tokens, G places asked for their next token, L MoE layers, E experts, K top-k.
"""

import numpy as np

from expertflow_jax.predictor.calibration import fit_layers
from expertflow_jax.predictor.runtime import Predictor
from expertflow_jax.routing.trace import RoutingTrace
from expertflow_jax.routing.trace_set import TraceSet

TOKEN_BUCKET = 8  # batches are cropped to a multiple of this, which bounds the number of compilations


def calibrate(predictor: Predictor, traces: TraceSet, *, sequences: int = 2000) -> Predictor:
    """The same predictor with its probabilities fitted to (the first `sequences` of) `traces`."""
    part = traces.select(slice(0, sequences))
    trace, inside, asked = part.trace, part.trace.token_mask(), following_places(part.trace)
    own, following = predict(predictor, part)
    rows = np.arange(len(trace))[:, None]
    after, counted = following_experts(trace, rows, asked)
    routed = (trace.experts[inside] >= 0).any(-1)
    sets = (own[inside], trace.experts[inside], routed), (following[rows, asked], after, counted)
    fitted = [
        fit_layers(_uncalibrated(predictor, i, probs), experts, counts)
        for i, (probs, experts, counts) in enumerate(sets)
    ]
    scale, bias = (np.stack(values) for values in zip(*fitted, strict=True))
    return Predictor(
        predictor.config,
        predictor.parameters,
        scale=scale,
        bias=bias,
        popularity=predictor.popularity,
        model_fingerprint=predictor.model_fingerprint,
        provenance=predictor.provenance,
        metrics=predictor.metrics,
    )


def _uncalibrated(predictor: Predictor, which: int, probs: np.ndarray) -> np.ndarray:
    """The predictor's own logits of probabilities [..., L, E], float64 [n, L, E]: a fit starts from these."""
    probs = probs.astype(np.float64).reshape(-1, *probs.shape[-2:])
    odds = np.log(np.maximum(probs, 1e-30)) - np.log(np.maximum(1 - probs, 1e-30))
    scale, bias = np.asarray(predictor.scale)[which], np.asarray(predictor.bias)[which]
    return (odds - bias[:, None]) / scale[:, None]


def predict(predictor: Predictor, traces: TraceSet, *, batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts of all tokens, each from those up to itself, and of the tokens after them: two float32 [N, T, L, E]
    (padding: 0)."""
    n, t = traces.embeddings.shape[:2]
    shape = (n, t, predictor.config.moe_layers, predictor.config.num_experts)
    out = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for begin in range(0, n, batch_size):
        rows = slice(begin, begin + batch_size)
        longest = min(t, -(-int(traces.trace.lengths[rows].max()) // TOKEN_BUCKET) * TOKEN_BUCKET)
        for whole, part in zip(out, predictor.every_token(traces.embeddings[rows, :longest]), strict=True):
            whole[rows, :longest] = part
    for whole in out:
        whole[~traces.trace.token_mask()] = 0
    return out


def following_places(trace: RoutingTrace) -> np.ndarray:
    """int32 [N, G]: the tokens of each sequence whose following one has to be forecast at run time, from the last of
    the prompt on; of traces without answers, all tokens. Places beyond a sequence's end repeat its last token."""
    first, longest = trace.prompt_lengths - 1, int((trace.lengths - trace.prompt_lengths).max(initial=0))
    if longest == 0:
        first, longest = np.zeros_like(trace.lengths), trace.experts.shape[1] - 1
    places = first[:, None] + np.arange(longest + 1)
    return np.minimum(places, np.maximum(trace.lengths - 1, 0)[:, None]).astype(np.int32)


def following_experts(trace: RoutingTrace, rows: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What comes after `places` [B, G] of sequences `rows` [B, 1].

    Returns:
      int32 [B, G, L, K], experts of the following token, -1 where the sequence ends; and bool [B, G, L], what counts:
      the layers that the token itself goes through, each place once. The end of a sequence counts, as a token that
      uses no expert: a horizon is of what will be used.
    """
    last = trace.lengths[rows] - 1
    after = trace.experts[rows, np.minimum(places + 1, trace.experts.shape[1] - 1)]
    after = np.where((places < last)[..., None, None], after, -1)
    new = np.diff(places, axis=1, prepend=-1) > 0
    return after, (trace.experts[rows, places] >= 0).any(-1) & new[..., None]
