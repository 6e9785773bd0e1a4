"""Collects one batch's routing while it runs: the prefill first, then one token per sequence and step.

Prompts of a batch differ in length, so the token that a sequence decodes at step i belongs at its own position
`lengths[b] + i`; the recorder keeps tokens without gaps, as the routing path predictor sees them.
Axes: B batch, T tokens, L MoE layers, E experts, K top-k, M ranked experts, D model width.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from expertflow_jax.errors import InputError
from expertflow_jax.routing.trace import RoutingTrace, pad_tokens


class SequenceRecorder:
    """Records input embeddings and routing of one batch.

    `prefill` once, `decode` per step, then `finish`. Arrays may be NumPy or JAX; they are copied to the host.
    """

    def __init__(self, num_experts: int, *, model_fingerprint: str = ""):
        self._num_experts = num_experts
        self._fingerprint = model_fingerprint
        self._steps: list[tuple[dict[str, np.ndarray], np.ndarray]] = []
        self._prompt_lengths: np.ndarray | None = None

    def prefill(
        self,
        embeddings: ArrayLike,
        experts: ArrayLike,
        lengths: ArrayLike,
        *,
        weights: ArrayLike | None = None,
        speculative: ArrayLike | None = None,
    ) -> None:
        """The prompts: embeddings [B, T, D], experts int [B, T, L, K], lengths int [B], and optionally
        weights [B, T, L, K], speculative int [B, T, L, M] (see `RoutingTrace`). Padding may hold anything."""
        self._prompt_lengths = np.asarray(lengths, np.int32)
        self._append(embeddings, experts, weights, speculative, np.ones(len(self._prompt_lengths), bool))

    def decode(
        self,
        embeddings: ArrayLike,
        experts: ArrayLike,
        *,
        active: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        speculative: ArrayLike | None = None,
    ) -> None:
        """One decoded token per sequence, the same arrays with T = 1; `active` bool [B]: sequences not yet
        finished (once inactive, a sequence stays so). Raises InputError before `prefill`."""
        if self._prompt_lengths is None:
            raise InputError("recorder: decode before prefill")
        live = np.ones(len(self._prompt_lengths), bool) if active is None else np.asarray(active, bool)
        self._append(embeddings, experts, weights, speculative, live)

    def _append(self, embeddings, experts, weights, speculative, active: np.ndarray) -> None:
        arrays = {"embeddings": np.array(embeddings), "experts": np.array(experts, np.int32)}
        if weights is not None:
            arrays["weights"] = np.array(weights, np.float32)
        if speculative is not None:
            arrays["speculative"] = np.array(speculative, np.int32)
        self._steps.append((arrays, active))

    def finish(
        self, ids: Sequence[str] = (), groups: Sequence[str] = ()
    ) -> tuple[Float[np.ndarray, "B T D"], RoutingTrace]:
        """Input embeddings (zero where padded) and the trace; T is here the longest sequence, decoded tokens included.

        Raises InputError if nothing was recorded or arrays of different steps do not fit together.
        """
        if self._prompt_lengths is None:
            raise InputError("recorder: nothing recorded; call prefill first")
        prompt = self._prompt_lengths
        decoded = np.sum([active for _, active in self._steps[1:]], axis=0, dtype=np.int32)
        lengths = (prompt + decoded).astype(np.int32)
        longest = int(lengths.max(initial=0))
        names = set.intersection(*(set(arrays) for arrays, _ in self._steps))
        fills = {"embeddings": 0, "experts": -1, "weights": 0, "speculative": -1}
        joined = {}
        for name in names:
            prompt_tokens = self._steps[0][0][name][:, :longest]  # [B, T, ...]
            tokens = pad_tokens(prompt_tokens, longest, fills[name]).copy()
            tokens[np.arange(longest) >= prompt[:, None]] = fills[name]
            position = prompt.copy()
            for arrays, active in self._steps[1:]:
                rows = np.flatnonzero(active)
                tokens[rows, position[rows]] = arrays[name][rows, 0]
                position[rows] += 1
            joined[name] = tokens
        embeddings = joined.pop("embeddings")
        trace = RoutingTrace(
            num_experts=self._num_experts,
            lengths=lengths,
            prompt_lengths=prompt,
            ids=tuple(ids),
            groups=tuple(groups),
            model_fingerprint=self._fingerprint,
            **joined,
        )
        return embeddings, trace
