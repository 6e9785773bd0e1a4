"""The small vision-language model that `train.moe` trains: its config from a training config, and its forward pass."""

from collections.abc import Callable
from typing import Any

import ml_collections

from expertflow_jax.models.causal_lm import ForwardOutput
from expertflow_jax.models.decoder_config import DecoderConfig
from expertflow_jax.models.qwen3_vl_moe import Qwen3VLMoe, Qwen3VLMoeConfig, VisionConfig, same_size_positions
from expertflow_jax.tasks import word_processor as words


def model_config(
    config: ml_collections.ConfigDict, processor: words.WordProcessor, positions_per_side: int
) -> Qwen3VLMoeConfig:
    """The architecture that `config.text` and `config.vision` name, with a benchmark's tokens and patches."""
    token = processor.build_tokenizer().get_vocab()
    text = DecoderConfig(vocab_size=processor.vocab_size(), qk_norm="head", **_plain(config.text))
    vision = VisionConfig(
        out_hidden_size=config.text.hidden_size,
        patch_size=words.PATCH,
        temporal_patch_size=1,
        spatial_merge_size=words.MERGE,
        num_position_embeddings=positions_per_side**2,
        **_plain(config.vision),
    )
    made = Qwen3VLMoeConfig(
        text,
        vision,
        image_token_id=token[words.IMAGE_PAD],
        video_token_id=token[words.VIDEO_PAD],
        vision_start_token_id=token[words.VISION_START],
        vision_end_token_id=token[words.VISION_END],
    )
    made.validate()
    return made


def _plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, (list, tuple)) else value for key, value in config.items()}


def make_forward(
    model: Qwen3VLMoeConfig, patches_per_side: int
) -> Callable[[Qwen3VLMoe, dict[str, Any]], ForwardOutput]:
    """The whole model on one of `answered.encode`'s batches."""
    where = same_size_positions(model, patches_per_side, patches_per_side)

    def forward(module: Qwen3VLMoe, batch: dict[str, Any]) -> ForwardOutput:
        image_embeds, deepstack = module.vision_stage(batch["pixel_values"], where)
        return module.forward(
            batch["input_ids"],
            batch["positions"],
            batch["lengths"],
            image_embeds,
            deepstack,
            batch["image_index"],
        )

    return forward
