"""The trunk of every decoder family: embeddings, layers, experts, head.

`CausalLM.forward` runs everything at once (training, fused reference). The stage methods and the layers' own run the
same maths in pieces with a KV cache, so that a runtime may fetch experts between router and experts. A family with
images adds `vision_stage`. Axes: B sequences, T tokens, L MoE layers, E experts, K top-k, D model width, V vocabulary,
N image tokens, n levels of visual features.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from expertflow_jax.errors import InputError
from expertflow_jax.models import rope
from expertflow_jax.models.decoder import DecoderLayer, Experts
from expertflow_jax.models.decoder_config import DecoderConfig
from expertflow_jax.models.layers import RMSNorm, linear


class VisionSizes(Protocol):
    """What the runtime asks of the vision part of a family's config."""

    @property
    def patch_dim(self) -> int:
        """Numbers per patch, as `pixel_values` holds them."""

    @property
    def feature_levels(self) -> int:
        """n, visual features that are added after decoder layers."""

    def image_tokens(self, grid: np.ndarray) -> int:
        """Tokens of an image of `grid` patches in time, height and width."""

    def most_tokens(self, patches: int) -> int:
        """Tokens that so many patches become at most."""

    def most_patches(self, image_tokens: int) -> int:
        """Patches that so many image tokens stand for at most."""

    def activation_bytes(self, patches: int, image_patches: int, itemsize: int) -> int:
        """An upper bound for the vision stage on `patches` in all, `image_patches` of the largest image."""

    def pack(
        self, pixel_values: np.ndarray, image_grid_thw: np.ndarray | None, pixel_mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the family's Hugging Face processor gives, as patches [P, patch_dim] and grids [images, 3].

        Raises:
          InputError: something is missing, or the family has no use for it.
        """


class ModelConfig(Protocol):
    """What the runtime asks of a family's config."""

    @property
    def text(self) -> DecoderConfig:
        """The decoder."""

    @property
    def vision(self) -> VisionSizes | None:
        """None: the model takes no images. A family with images has an `image_token_id` too."""

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the head is the embedding table."""

    def to_hf(self) -> dict[str, Any]:
        """config.json as transformers 5.x reads it."""

    def positions(
        self, input_ids: np.ndarray, lengths: np.ndarray, grid_thw: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions int32 [3, B, T] of right-padded prompts (0 on padding), and where decoding goes on int32 [B]."""

    def vision_inputs(self, pixel_values: np.ndarray, grid_thw: np.ndarray) -> tuple[np.ndarray, Any]:
        """What `vision_stage` takes: pixels, and where they stand; their image tokens come out in order."""


@dataclasses.dataclass(frozen=True)
class CausalLMConfig:
    """Architecture of a text model; families derive from it and say how config.json spells it."""

    text: DecoderConfig
    tie_word_embeddings: bool = False

    @property
    def vision(self) -> None:
        """No images."""
        return None

    def positions(
        self, input_ids: np.ndarray, lengths: np.ndarray, grid_thw: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `rope.text_positions`; raises InputError if there are images."""
        if grid_thw is not None:
            raise InputError("the model takes no images; leave out pixel_values and image_grid_thw")
        return rope.text_positions(lengths, input_ids.shape[1])

    def vision_inputs(self, pixel_values: np.ndarray, grid_thw: np.ndarray) -> tuple[np.ndarray, Any]:
        """Raises InputError."""
        raise InputError("the model takes no images; leave out pixel_values and image_grid_thw")


class ForwardOutput(NamedTuple):
    """What `CausalLM.forward` returns."""

    logits: jax.Array  # float32 [B, T, V]
    expert_ids: jax.Array  # int32 [B, L, T, K], -1 on padding
    router_probs: jax.Array  # float32 [B, L, T, E]


class CausalLM(nnx.Module):
    """The model.

    Attributes:
      embed_tokens, norm, lm_head: lm_head is None when the embeddings are tied.
      layers: DecoderLayer per layer.
      experts: Experts per layer; None for layers without, and for all when built `with_experts=False`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        with_experts: bool = True,
    ):
        text = config.text
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.embed_tokens = nnx.Embed(
            text.vocab_size, text.hidden_size, dtype=self.dtype, param_dtype=self.dtype, rngs=rngs
        )
        indices = range(text.num_hidden_layers)
        self.layers: nnx.List[Any] = nnx.List([DecoderLayer(text, i, dtype=self.dtype, rngs=rngs) for i in indices])
        self.experts = nnx.List(
            [Experts(text, dtype=self.dtype, rngs=rngs) if with_experts and text.is_moe(i) else None for i in indices]
        )
        self.norm = RMSNorm(text.hidden_size, text.rms_norm_eps, dtype=self.dtype)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else linear(text.hidden_size, text.vocab_size, bias=False, dtype=self.dtype, rngs=rngs)
        )

    def forward(
        self,
        input_ids: jax.Array,
        positions: jax.Array,
        lengths: jax.Array,
        image_embeds: jax.Array | None = None,
        deepstack: jax.Array | None = None,
        image_index: jax.Array | None = None,
    ) -> ForwardOutput:
        """The whole model on right-padded sequences, all experts at hand.

        Args:
          input_ids: int32 [B, T].
          positions: int32 [3, B, T], see `ModelConfig.positions`.
          lengths: int32 [B].
          image_embeds, deepstack: [N, D] and [n, N, D] from the family's `vision_stage`.
          image_index: int32 [B, T], the image token of each position, -1 for text.
        """
        x = self.embed_stage(input_ids, image_embeds, image_index)
        step = jnp.arange(input_ids.shape[1])
        inside = step < lengths[:, None]
        mask = (step[:, None] >= step) & inside[:, None, :]
        chosen, probabilities = [], []
        for i, (layer, experts) in enumerate(zip(self.layers, self.experts, strict=True)):
            h = layer.attend(x, positions, mask)
            if experts is not None:
                h, y, ids, weights, probs = layer.route_and_share(h, inside)
                x = experts(h, y, ids, weights)
                chosen.append(ids)
                probabilities.append(probs)
            else:
                x = layer.feed_forward(h)
            if deepstack is not None and image_index is not None and i < deepstack.shape[0]:
                x = self.add_deepstack(x, deepstack[i], image_index)
        return ForwardOutput(self.head_stage(x), jnp.stack(chosen, axis=1), jnp.stack(probabilities, axis=1))

    def embed_stage(
        self, input_ids: jax.Array, image_embeds: jax.Array | None, image_index: jax.Array | None
    ) -> jax.Array:
        """Token embeddings [B, T, D] with image embeddings put in their places."""
        x = self.embed_tokens(input_ids)
        if image_embeds is None or image_index is None:
            return x
        taken = image_embeds[jnp.maximum(image_index, 0)].astype(x.dtype)
        return jnp.where((image_index >= 0)[..., None], taken, x)

    def add_deepstack(self, x: jax.Array, visual: jax.Array, image_index: jax.Array) -> jax.Array:
        """Adds one level of visual features [N, D] at image positions; after decoder layer i < n comes level i."""
        taken = visual[jnp.maximum(image_index, 0)].astype(x.dtype)
        return x + jnp.where((image_index >= 0)[..., None], taken, 0)

    def head_stage(self, x: jax.Array) -> jax.Array:
        """Final norm and output projection: [..., D] -> float32 [..., V].

        One bfloat16 row alone goes through a head of its own as two: XLA's product of a vector and that matrix leaves
        out a rounding (hundredths of a logit on a CPU, enough for another sample) and takes several times longer there.
        So a sequence alone has the logits that it has in a batch.
        """
        if self.lm_head is None:
            return jnp.dot(self.norm(x), self.embed_tokens.embedding[...].T, preferred_element_type=jnp.float32)
        alone = self.dtype == jnp.bfloat16 and x.size == x.shape[-1]
        rows = jnp.pad(x.reshape(1, -1), ((0, 1), (0, 0))) if alone else x  # [2, D] or [..., D]
        logits = jnp.dot(self.norm(rows), self.lm_head.kernel[...], preferred_element_type=jnp.float32)
        return logits[0].reshape(*x.shape[:-1], -1) if alone else logits
