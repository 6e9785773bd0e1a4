"""Published MoE models cut down to this machine: their experts, top-k and attention in proportion, random weights.

What a policy sees is kept (experts per layer, top-k, how large an expert is beside attention); width and depth are
cut so that a step takes milliseconds on a few CPU cores. Each runs as its own family, but for two: the recorded routing
is that of a decoder without an encoder, so Switch's shapes borrow Mixtral's block, with top-1 routing and experts of
equal bytes; DeepSeek-MoE's borrows Qwen2-MoE's. This times the moving of experts, not those models' answers; their
routing is replayed (`routes.py`).
Axes: D model width, F expert width, L MoE layers, E experts, K top-k.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import nnx

from expertflow_jax.errors import InputError
from expertflow_jax.inference.stages import Stages
from expertflow_jax.models.causal_lm import CausalLM
from expertflow_jax.models.decoder_config import DecoderConfig
from expertflow_jax.models.device_form import DeviceForm
from expertflow_jax.models.mixtral import MixtralConfig
from expertflow_jax.models.qwen2_moe import Qwen2MoeConfig
from expertflow_jax.models.qwen3_moe import Qwen3MoeConfig
from expertflow_jax.offload.store import ExpertSizes, ExpertStore
from expertflow_jax.simulation.gpus import LayerSize

VOCABULARY = 512
Family = MixtralConfig | Qwen2MoeConfig | Qwen3MoeConfig


@dataclasses.dataclass(frozen=True)
class Shape:
    """A full-size layer, and what runs here.

    Attributes:
      full: the published model's MoE layer.
      family: whose decoder block it is.
      d_model, d_ff, num_layers, heads, kv_heads, head_dim, shared_d_ff: cut down; E and K stay.
      vocabulary: V.
      dtype: of the weights.
      distinct: experts that have numbers of their own, the others repeat them; 0: all.
    """

    full: LayerSize
    family: type[Family]
    d_model: int
    d_ff: int
    num_layers: int
    heads: int
    kv_heads: int
    head_dim: int = 32
    shared_d_ff: int = 0
    vocabulary: int = VOCABULARY
    dtype: str = "float32"
    distinct: int = 0

    def whole(self, num_layers: int, vocabulary: int) -> "Shape":
        """The published model itself, in bfloat16: tens of gigabytes, of which a few numbers are drawn and repeated,
        since only their moving and multiplying is timed."""
        full = self.full
        return dataclasses.replace(
            self,
            d_model=full.d_model,
            d_ff=full.d_ff,
            num_layers=num_layers,
            heads=full.heads,
            kv_heads=full.kv_heads,
            head_dim=full.head_dim,
            shared_d_ff=full.shared_d_ff,
            vocabulary=vocabulary,
            dtype="bfloat16",
            distinct=4,
        )


QWEN3_VL_30B = LayerSize(2048, 768, 128, 8, 32, 4, 128)
SWITCH = {
    experts: Shape(LayerSize(768, 3072, experts, 1, 12, 12, 64, matrices=2), MixtralConfig, 192, 512, 6, 6, 6)
    for experts in (8, 32, 64, 128)
}
SHAPES = {
    "mixtral_8x7b": Shape(LayerSize(4096, 14336, 8, 2, 32, 8, 128), MixtralConfig, 256, 896, 4, 8, 2),
    "qwen1.5_moe_a2.7b": Shape(
        LayerSize(2048, 1408, 60, 4, 16, 16, 128, 5632), Qwen2MoeConfig, 256, 176, 4, 8, 8, shared_d_ff=704
    ),
    "deepseek_moe_16b": Shape(
        LayerSize(2048, 1408, 64, 6, 16, 16, 128, 2816), Qwen2MoeConfig, 256, 176, 4, 8, 8, shared_d_ff=352
    ),
    "qwen3_vl_30b_a3b": Shape(QWEN3_VL_30B, Qwen3MoeConfig, 256, 96, 4, 16, 2),
    **{f"switch_base_{experts}": shape for experts, shape in SWITCH.items()},
}
WHOLE = {
    "mixtral_8x7b_whole": SHAPES["mixtral_8x7b"].whole(32, 32_000),
    "qwen3_vl_30b_a3b_whole": SHAPES["qwen3_vl_30b_a3b"].whole(48, 151_936),
}
ALL = SHAPES | WHOLE


def find_shape(name: str) -> Shape:
    """The shape of this name; raises InputError if there is none."""
    if name not in ALL:
        raise InputError(f"config: no shape {name!r}; known are {', '.join(ALL)}")
    return ALL[name]


def config_of(shape: Shape) -> Family:
    """The cut-down model's config."""
    qwen3, qwen2 = shape.family is Qwen3MoeConfig, shape.family is Qwen2MoeConfig
    text = DecoderConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.d_model,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        num_experts=shape.full.num_experts,
        num_experts_per_tok=shape.full.top_k,
        moe_intermediate_size=shape.d_ff,
        shared_expert_intermediate_size=shape.shared_d_ff,
        shared_expert_gate=qwen2,
        qkv_bias=qwen2,
        norm_topk_prob=not qwen2,
        qk_norm="head" if qwen3 else "none",
        max_position_embeddings=1024,
    )
    text.validate()
    return shape.family(text)


def build(shape: Shape, seed: int, form: DeviceForm | None = None) -> tuple[Stages, ExpertStore]:
    """Compiled stages and a full host tier with random weights; form: how experts lie, None: what suits the device."""
    config, dtype = config_of(shape), jnp.dtype(shape.dtype)
    stages = Stages(CausalLM(config, rngs=nnx.Rngs(seed), dtype=dtype, with_experts=False), form=form)
    layout = config.text.expert_layout(dtype)
    store = ExpertStore(layout, shape.num_layers, shape.full.num_experts)
    rng, scale = np.random.default_rng(seed), np.float32(shape.d_model**-0.5)

    def draw() -> list[np.ndarray]:
        return [(scale * rng.standard_normal(s, np.float32)).astype(dtype) for s in layout.part_shapes]

    repeated = [draw() for _ in range(shape.distinct)]
    for key in range(shape.num_layers * shape.full.num_experts):
        matrices = repeated[key % shape.distinct] if shape.distinct else draw()
        store.put(*divmod(key, shape.full.num_experts), *matrices)
    return stages, store


def describe(shape: Shape, form: DeviceForm | None = None) -> tuple[Stages, ExpertSizes]:
    """The same without weights, of which a plan needs only the sizes."""
    config, dtype = config_of(shape), jnp.dtype(shape.dtype)
    module = nnx.eval_shape(lambda: CausalLM(config, rngs=nnx.Rngs(0), dtype=dtype, with_experts=False))
    stages = Stages(module, form=form, put=lambda array, _: array)
    return stages, ExpertSizes(shape.num_layers, shape.full.num_experts, config.text.expert_layout(dtype).nbytes)
