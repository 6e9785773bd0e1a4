"""Loads a checkpoint the way it will run: dense parameters onto the device, every expert into pinned host memory."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from expertflow_jax.checkpoints import load_dense_and_experts
from expertflow_jax.errors import InputError
from expertflow_jax.inference.batching import PromptBatch
from expertflow_jax.inference.stages import Stages
from expertflow_jax.locate import locate
from expertflow_jax.models.causal_lm import ModelConfig
from expertflow_jax.offload.store import ExpertStore
from expertflow_jax.processing import Processor
from expertflow_jax.routing.fingerprint import fingerprint_of

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to be served through any number of engines.

    Attributes:
      config: of the family.
      stages: compiled stages with the dense parameters on the device.
      store: the host tier with all experts.
      processor: tokenizer, chat template and image processor of the checkpoint; None if it has no tokenizer.
      fingerprint: names the model for its predictor (`routing.fingerprint`).
      path: the checkpoint's directory.
    """

    config: ModelConfig
    stages: Stages
    store: ExpertStore
    processor: Processor | None
    fingerprint: str
    path: Path

    def embed(self, batch: PromptBatch) -> tuple[jax.Array, jax.Array | None]:
        """Input embeddings [B, T, D] and DeepStack features, see `Stages.embed_prompts`."""
        return self.stages.embed_prompts(batch)

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.resolve().name


def load_model(name: str, dtype: str | None = None) -> LoadedModel:
    """Reads a committed model, a checkpoint directory or a hub id.

    Args:
      name: see `locate.locate`.
      dtype: "float32" or "bfloat16"; None keeps the checkpoint's own.

    Raises:
      InputError: nothing there, an unsupported dtype, or a checkpoint that is incomplete, truncated or malformed.
    """
    path = locate(name)
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not supported; choose one of {', '.join(DTYPES)}")
    config, module, experts = load_dense_and_experts(path, None if dtype is None else jnp.dtype(dtype))
    fingerprint = fingerprint_of(config, module)
    text = config.text
    store = ExpertStore(
        text.expert_layout(module.dtype),
        len(text.moe_layers),
        text.num_experts,
    )
    columns = (TextColumn("loading experts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task("experts", total=store.num_layers * store.num_experts)
        for layer, expert, gate_up, down in experts:
            store.put(layer, expert, gate_up, down)
            progress.advance(bar)
    if store.missing:
        layer, expert = store.missing[0]
        raise InputError(f"{path}: expert {expert} of MoE layer {layer} is missing ({len(store.missing)} in all)")
    processor = Processor.from_directory(path) if (path / "tokenizer.json").exists() else None
    return LoadedModel(config, Stages(module), store, processor, fingerprint, path)
