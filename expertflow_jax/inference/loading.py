"""Loads a checkpoint the way it will run: dense parameters onto the device, experts into the host tier.

Experts stream from the files one by one, so that host memory holds them once, in the form in which they travel.
"""

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from expertflow_jax import gpu_caps
from expertflow_jax.checkpoints import ExpertFiles, load_dense_and_experts
from expertflow_jax.errors import InputError
from expertflow_jax.inference.stages import Stages
from expertflow_jax.locate import locate
from expertflow_jax.models.causal_lm import ModelConfig
from expertflow_jax.models.device_form import DeviceForm
from expertflow_jax.models.experts import BufferLayout, ExpertLayout
from expertflow_jax.models.quantized import layout_for
from expertflow_jax.offload.budget import HostPlan, parse_bytes, plan_host
from expertflow_jax.offload.store import ExpertStore
from expertflow_jax.offload.tiers import TieredStore
from expertflow_jax.processing import Processor
from expertflow_jax.processing.batching import PromptBatch
from expertflow_jax.routing.fingerprint import fingerprint_of

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to be served through any number of engines.

    Attributes:
      config: of the family.
      stages: compiled stages with the dense parameters on the device.
      store: the host tier with all experts.
      host: how the experts are divided between host memory and files.
      experts: the experts in the checkpoint's files.
      processor: tokenizer, chat template and image processor of the checkpoint; None if it has no tokenizer.
      fingerprint: names the model for its predictor (`routing.fingerprint`).
      path: the checkpoint's directory.
      expert_dtype: "float32" or "bfloat16", the model's own; "int8" or "int4" where experts are quantised.
    """

    config: ModelConfig
    stages: Stages
    store: ExpertStore | TieredStore
    host: HostPlan
    experts: ExpertFiles
    processor: Processor | None
    fingerprint: str
    path: Path
    expert_dtype: str

    def embed(self, batch: PromptBatch) -> tuple[jax.Array, jax.Array | None]:
        """Input embeddings [B, T, D] and DeepStack features, see `Stages.embed_prompts`."""
        return self.stages.embed_prompts(batch)

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.resolve().name

    @property
    def quantized(self) -> bool:
        """Whether the experts are, so that outputs differ from the checkpoint's."""
        return self.expert_dtype not in DTYPES


def check_dtype(dtype: str | None) -> None:
    """Raises InputError unless `dtype` is one that models run in, or None."""
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not supported; choose one of {', '.join(DTYPES)}")


def load_model(
    name: str,
    dtype: str | None = None,
    *,
    expert_dtype: str | None = None,
    host_memory_budget: str | int | None = None,
    form: DeviceForm | None = None,
) -> LoadedModel:
    """Reads a committed model, a checkpoint directory or a hub id.

    Args:
      name: see `locate.locate`.
      dtype: "float32" or "bfloat16"; None keeps the checkpoint's own.
      expert_dtype: "int8" or "int4" quantises the experts, which is lossy; None keeps them in `dtype`.
      host_memory_budget: host memory for experts ("32GiB"); those beyond it stay in the files. None: as much as it
        takes.
      form: how experts lie and run on the device; None: what suits it.

    Raises:
      InputError: nothing there, an unsupported dtype, a budget that is too small, or a checkpoint that is incomplete,
        truncated or malformed.
    """
    path = locate(name)
    check_dtype(dtype)
    config, module, experts = load_dense_and_experts(path, None if dtype is None else jnp.dtype(dtype))
    fingerprint = fingerprint_of(config, module)
    full = config.text.expert_layout(module.dtype)
    layout = layout_for(full, expert_dtype)
    host = host_plan(full, layout, experts.num_layers * experts.num_experts, experts.file_bytes, host_memory_budget)
    store = _host_tier(experts, layout, host)
    processor = Processor.from_directory(path) if (path / "tokenizer.json").exists() else None
    stages = Stages(module, form=form).with_layout(layout)
    stored_dtype = expert_dtype or str(jnp.dtype(module.dtype))
    return LoadedModel(config, stages, store, host, experts, processor, fingerprint, path, stored_dtype)


def with_expert_dtype(model: LoadedModel, expert_dtype: str, host_memory_budget: str | int | None) -> LoadedModel:
    """The same model with a host tier of its own, whose experts are quantised; dense parameters are shared.

    Raises:
      InputError: as `load_model`.
    """
    experts = model.experts
    full = model.config.text.expert_layout(model.stages.dtype)
    layout = layout_for(full, expert_dtype)
    host = host_plan(full, layout, model.host.experts, experts.file_bytes, host_memory_budget)
    store = _host_tier(experts, layout, host)
    return dataclasses.replace(
        model, stages=model.stages.with_layout(layout), store=store, host=host, expert_dtype=expert_dtype
    )


def host_plan(
    full: ExpertLayout, layout: BufferLayout, experts: int, file_bytes: int, host_memory_budget: str | int | None
) -> HostPlan:
    """How `experts` in all are divided between host memory and files.

    Args:
      full: the layout of experts in the dtype of the computation.
      layout: the one they are kept in.
      file_bytes: one expert in the files.

    Raises:
      InputError: the budget is too small, with the minimum that would do.
    """
    # As read, put together, in the model's dtype, packed from that, and on its way into pinned memory.
    reading = 2 * file_bytes + 2 * full.nbytes + layout.nbytes
    budget = None if host_memory_budget is None else parse_bytes(host_memory_budget)
    return plan_host(budget, experts=experts, expert_bytes=layout.nbytes, file_bytes=file_bytes, reading_bytes=reading)


def _host_tier(experts: ExpertFiles, layout: BufferLayout, host: HostPlan) -> ExpertStore | TieredStore:
    gpu_caps.check(gpu_caps.Needs(host_bytes=host.pinned * layout.nbytes))
    if host.pinned < host.experts:
        return TieredStore(layout, experts.num_layers, experts.num_experts, experts.read, host)
    store = ExpertStore(layout, experts.num_layers, experts.num_experts)
    for layer, expert, gate_up, down in _progress(experts, "loading experts", host.experts):
        store.put(layer, expert, gate_up, down)
    return store


def pin_experts(store: ExpertStore | TieredStore, popularity: np.ndarray | None = None) -> None:
    """Fills what a tiered store may pin, with the most popular experts or else the first ones.

    Args:
      popularity: float [L, E], how often tokens choose each expert.
    """
    if isinstance(store, TieredStore):
        store.prefer(popularity)
        for key in _progress(store.preferred, "pinning experts", len(store.preferred)):
            store.source(key)


def _progress(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as progress:
        yield from progress.track(items, total=total)
