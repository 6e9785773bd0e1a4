"""The trained predictor at run time: prefill, then one token per step, on plain pytrees with few
compilations.

Forecasts come as calibrated probabilities (`predictor.calibration`). Lengths and batch sizes are rounded
up to powers of two and long prompts run in chunks, so the number of compilations grows with the logarithm
of what is asked and memory with the chunk (DESIGN section 6).
Axes: B batch, T tokens, S cache positions, N blocks, L MoE layers, E experts, D width of the served model.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from expertflow_jax.errors import InputError
from expertflow_jax.predictor.model import PredictorConfig, RoutingPathPredictor

CHUNK = 256  # tokens per call at most; scores of a chunk take B * H * CHUNK * S floats
RESERVE = 16  # cache positions kept free beyond the prompt, so that short answers never reallocate


def bucket(n: int, smallest: int = 1) -> int:
    """The power of two >= n, at least `smallest`."""
    return max(smallest, 1 << max(n - 1, 0).bit_length())


@dataclasses.dataclass(frozen=True, eq=False)
class PredictorCache:
    """Keys and values of a batch; consumed by the call it is passed to (its buffers are donated).

    Attributes:
      keys, values: float32 [N, B', S, H, Dh], B' >= B and S rounded up to powers of two.
      lengths: int32 [B], tokens seen of each sequence (host).
      following: float32 [B, L, E] (host), the forecast of the token after the last one seen: P(there is one and it
        uses the expert).
    """

    keys: jax.Array
    values: jax.Array
    lengths: np.ndarray
    following: np.ndarray

    @property
    def nbytes(self) -> int:
        return int(self.keys.nbytes + self.values.nbytes)

    def select(self, rows: Sequence[int] | np.ndarray) -> "PredictorCache":
        """The sequences `rows` in that order, as a cache of its own; this one stays usable."""
        lengths = self.lengths[np.asarray(rows, np.int64)]
        index = np.zeros(bucket(len(lengths)), np.int32)
        index[: len(lengths)] = rows
        keys, values = _gather(self.keys, self.values, index)
        return PredictorCache(keys, values, lengths, self.following[np.asarray(rows, np.int64)])

    @classmethod
    def concatenate(cls, caches: Sequence["PredictorCache"]) -> "PredictorCache":
        """Joins batches (for regrouping sequences between steps); the parts stay usable."""
        size = max(cache.keys.shape[2] for cache in caches)
        grown = [_grow(cache, size) for cache in caches]
        lengths, following = (np.concatenate([getattr(c, name) for c in caches]) for name in ("lengths", "following"))
        pad = bucket(len(lengths)) - len(lengths)

        def join(name: str) -> jax.Array:
            parts = [getattr(cache, name)[:, : len(cache.lengths)] for cache in grown]
            return jnp.pad(jnp.concatenate(parts, axis=1), [(0, 0), (0, pad)] + [(0, 0)] * 3)

        return cls(join("keys"), join("values"), lengths, following)


@jax.jit
def _gather(keys: jax.Array, values: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    return keys[:, rows], values[:, rows]


def _grow(cache: PredictorCache, size: int) -> PredictorCache:
    extra = size - cache.keys.shape[2]
    if extra <= 0:
        return cache
    widths = [(0, 0), (0, 0), (0, extra), (0, 0), (0, 0)]
    return dataclasses.replace(cache, keys=jnp.pad(cache.keys, widths), values=jnp.pad(cache.values, widths))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(5, 6))
def _extend(graph, reduce: bool, state, scale, bias, keys, values, x, start, lengths, visits):
    """One chunk: the cache; probabilities [B, T, L, E], or with `reduce` log P(unused by the chunk) float64 [B, L, E];
    those of the token after its last valid one [B, L, E].

    The reduction is in float64, as `predictor.forecast` has it on the host: equal to it in every float32 that comes of
    it, so that what a cache decides does not depend on where tokens were summed.
    """
    model = nnx.merge(graph, state)
    last = jnp.maximum(lengths - 1, 0)[:, None]
    logits, following, cache = model(x, (keys, values), start, lengths, last)
    probs = jax.nn.sigmoid(_calibrated(logits, 0, scale, bias))
    after = jax.nn.sigmoid(_calibrated(following[:, 0], 1, scale, bias))
    if not reduce:
        return *cache, probs, after
    counted = (jnp.arange(x.shape[1]) < lengths[:, None])[..., None, None]
    if visits is not None:
        counted = counted & visits[..., None]
    with jax.enable_x64(True):
        unused = jnp.where(counted, jnp.log1p(-probs.astype(jnp.float64)), 0.0).sum(1)
    return *cache, unused, after


@functools.partial(jax.jit, static_argnums=0)
def _every_token(graph, state, scale, bias, x):
    logits, following, _ = nnx.merge(graph, state)(x)
    return tuple(jax.nn.sigmoid(_calibrated(z, which, scale, bias)) for which, z in enumerate((logits, following)))


def _calibrated(logits: jax.Array, which: int, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return scale[which][:, None] * logits + bias[which][:, None]


class Predictor:
    """A trained routing path predictor, bound to one served model.

    Attributes:
      config: `PredictorConfig`.
      model_fingerprint: the served model that it was trained for (`routing.fingerprint`).
      provenance: how it was trained (command, seed, steps, checksum of the traces).
      popularity: float32 [L, E], fraction of training tokens that chose the expert; the best forecast for
        steps of which nothing is known yet.
      metrics: what it was measured to do on traces it was not trained on.
      scale, bias: float32 [2, L], calibration of a token's own forecast and of the following token's.
    """

    def __init__(
        self,
        config: PredictorConfig,
        parameters: nnx.State,
        *,
        scale: np.ndarray | jax.Array | None = None,
        bias: np.ndarray | jax.Array | None = None,
        popularity: np.ndarray | None = None,
        model_fingerprint: str = "",
        provenance: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
    ):
        self.config = config
        self.model_fingerprint = model_fingerprint
        self.provenance = dict(provenance or {})
        self.metrics = dict(metrics or {})
        self._graph, _ = nnx.split(nnx.eval_shape(lambda: RoutingPathPredictor(config, rngs=nnx.Rngs(0))))
        self.parameters = jax.tree.map(jnp.asarray, parameters)
        calibration = (2, config.moe_layers)
        uniform = np.full((config.moe_layers, config.num_experts), config.top_k / config.num_experts)
        self.popularity = np.asarray(uniform if popularity is None else popularity, np.float32)
        self.scale = jnp.asarray(np.ones(calibration) if scale is None else scale, jnp.float32)
        self.bias = jnp.asarray(np.zeros(calibration) if bias is None else bias, jnp.float32)

    @property
    def nbytes(self) -> int:
        """Bytes of its parameters on the device (a batch's cache comes on top: `PredictorCache.nbytes`)."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.parameters, self.scale, self.bias)))

    def cache_nbytes(self, batch: int, tokens: int) -> int:
        """Bytes of the cache for `batch` sequences of `tokens` tokens, reserve included."""
        c = self.config
        return 2 * 4 * c.depth * bucket(batch) * bucket(tokens + RESERVE, 32) * c.width

    def prefill(self, x, lengths: np.ndarray) -> tuple[np.ndarray, PredictorCache]:
        """Forecasts prompts.

        Args:
          x: [B, T, D], the served model's input embeddings (NumPy or JAX), right-padded.
          lengths: int [B], valid tokens.

        Returns:
          probs float32 [B, T, L, E] (padding: meaningless) and the cache to decode with.

        Raises:
          InputError: x does not have the width D of this predictor's model.
        """
        return self._run(x, lengths, None, reduce=False)

    def decode(self, x, cache: PredictorCache, active: np.ndarray | None = None) -> tuple[np.ndarray, PredictorCache]:
        """Forecasts one further token per sequence: x [B, 1, D] -> probs float32 [B, 1, L, E] and the cache.

        `active` bool [B]: sequences still decoding; the others' caches stay as they are. `cache` is consumed.
        """
        return self._run(x, self._active(cache, active), cache, reduce=False)

    def forecast(
        self,
        x,
        lengths: Int[np.ndarray, "B"] | None = None,
        cache: PredictorCache | None = None,
        visits: Bool[np.ndarray, "B T L"] | None = None,
    ) -> tuple[Float[np.ndarray, "B L E"], PredictorCache]:
        """As `prefill` (no cache) or `decode` (with one), but reduced over tokens on the device: what is fetched does
        not grow with T.

        Args:
          visits: the MoE layers that a token goes through, see `PromptBatch.visits`; None: all.

        Returns:
          use float64 [B, L, E]: probability that a sequence uses the expert in this call (0 where `lengths` is 0), and
          the cache. `predictor.forecast.combine_sequences` gives the step's, equal to `step_forecast` of `prefill`.

        Raises:
          InputError: x does not have the width D of this predictor's model.
        """
        if lengths is None:
            lengths = np.full(x.shape[0], x.shape[1], np.int32)
        unused, cache = self._run(x, lengths, cache, reduce=True, visits=visits)
        return -np.expm1(unused), cache

    def every_token(self, x) -> tuple[np.ndarray, np.ndarray]:
        """Forecasts of all tokens and of all that follow them, for reports and training: x [B, T, D] -> two float32
        [B, T, L, E] (padding: meaningless)."""
        self._check(x, x.shape[0])
        own, following = _every_token(self._graph, self.parameters, self.scale, self.bias, x)
        return np.asarray(own), np.asarray(following)

    @staticmethod
    def _active(cache: PredictorCache, active: np.ndarray | None) -> np.ndarray:
        return np.ones(len(cache.lengths), np.int32) if active is None else np.asarray(active).astype(np.int32)

    def _check(self, x, sequences: int) -> None:
        if x.ndim != 3 or x.shape[2] != self.config.input_width or x.shape[0] != sequences:
            raise InputError(
                f"predictor: embeddings {tuple(x.shape)} for {sequences} sequences; this predictor's model has width "
                f"{self.config.input_width}"
            )

    def _run(
        self, x, lengths, cache: PredictorCache | None, *, reduce: bool, visits: np.ndarray | None = None
    ) -> tuple[np.ndarray, PredictorCache]:
        lengths = np.asarray(lengths, np.int32)
        self._check(x, len(lengths))
        b, t = x.shape[:2]
        size, starts = bucket(b), np.zeros(b, np.int32) if cache is None else cache.lengths
        needed = int((starts + lengths).max(initial=0))
        if cache is None:
            c = self.config
            shape = (c.depth, size, bucket(needed + RESERVE, 32), c.heads, c.head_width)
            nothing = np.zeros((b, c.moe_layers, c.num_experts), np.float32)
            cache = PredictorCache(jnp.zeros(shape), jnp.zeros(shape), starts, nothing)
        elif needed > cache.keys.shape[2]:
            cache = _grow(cache, bucket(needed + RESERVE))
        keys, values, following = cache.keys, cache.values, cache.following
        pieces = []
        for begin in range(0, t, CHUNK):
            width = min(CHUNK, t - begin)
            chunk = x if width == t else x[:, begin : begin + width]
            tokens = width if width == 1 else bucket(width, 8)
            new = np.clip(lengths - begin, 0, width)
            keys, values, piece, after = _extend(
                self._graph,
                reduce,
                self.parameters,
                self.scale,
                self.bias,
                keys,
                values,
                _pad(chunk, size, tokens),
                _pad(starts + np.minimum(lengths, begin), size),
                _pad(new, size),
                None if visits is None else _pad(visits[:, begin : begin + width], size, tokens),
            )
            following = np.where((new > 0)[:, None, None], np.asarray(after)[:b], following)
            pieces.append(np.asarray(piece)[:b] if reduce else np.asarray(piece)[:b, :width])
        out = functools.reduce(np.add, pieces) if reduce else np.concatenate(pieces, axis=1)
        return out, PredictorCache(keys, values, starts + lengths, following)


def _pad(array, *shape: int):
    """Fills leading axes up to `shape` with zeros, on the side where the array lives."""
    widths = [(0, want - have) for have, want in zip(array.shape, shape, strict=False)]
    if not any(after for _, after in widths):
        return array
    widths += [(0, 0)] * (array.ndim - len(shape))
    return jnp.pad(array, widths) if isinstance(array, jax.Array) else np.pad(array, widths)
