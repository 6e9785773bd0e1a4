"""Memory plans of a whole model, loaded or only described by its config.json: what a dry run prints.

Axes: B sequences.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from expertflow_jax.checkpoints.families import family_of
from expertflow_jax.checkpoints.files import read_json
from expertflow_jax.checkpoints.load import loaded_config
from expertflow_jax.errors import InputError
from expertflow_jax.inference.arguments import real_number, whole_number
from expertflow_jax.inference.loading import LoadedModel, check_dtype, host_plan
from expertflow_jax.inference.memory import RequestSize, best_block, plan_request
from expertflow_jax.models.causal_lm import ModelConfig
from expertflow_jax.models.device_form import DeviceForm, device_form
from expertflow_jax.models.experts import BufferLayout
from expertflow_jax.models.quantized import layout_for
from expertflow_jax.offload.budget import HostPlan, MemoryPlan
from expertflow_jax.offload.misses import MissPolicy
from expertflow_jax.predictor import Predictor
from expertflow_jax.processing.batching import Prompt


@dataclasses.dataclass(frozen=True)
class ModelSizes:
    """What a plan needs to know of a model.

    Attributes:
      config: of the family.
      dense_bytes: everything but the experts, on the device.
      dtype: of the computation.
      layout: of which arrays an expert consists.
      host: how they are divided between host memory and files.
      copies: of which arrays a quantised copy consists, where a miss policy runs such.
      form: how experts lie and run on the device.
    """

    config: ModelConfig
    dense_bytes: int
    dtype: Any
    layout: BufferLayout
    host: HostPlan
    copies: BufferLayout | None = None
    form: DeviceForm = dataclasses.field(default_factory=device_form)

    @property
    def scratch_bytes(self) -> int:
        """Device memory that running an expert takes, of either form."""
        return max(self.form.scratch_bytes(layout) for layout in (self.layout, self.copies) if layout is not None)

    @property
    def pinned_bytes(self) -> int:
        """Pinned host memory of the experts, and of their quantised copies."""
        copies = 0 if self.copies is None else self.host.experts * self.copies.nbytes
        return self.host.pinned * self.layout.nbytes + copies

    def with_copies(self, misses: MissPolicy) -> "ModelSizes":
        """The same with the quantised copies that a miss policy runs, if it runs such."""
        if not misses.copies:
            return self
        full = self.config.text.expert_layout(self.dtype)
        return dataclasses.replace(self, copies=layout_for(full, misses.copies))

    @staticmethod
    def of(model: LoadedModel) -> "ModelSizes":
        """Of a model that is loaded."""
        stages = model.stages
        return ModelSizes(model.config, stages.dense_bytes, stages.dtype, stages.layout, model.host, form=stages.form)

    @staticmethod
    def described_in(
        directory: Path,
        dtype: str | None,
        expert_dtype: str | None,
        host_memory_budget: str | int | None,
        form: DeviceForm | None = None,
    ) -> "ModelSizes":
        """Of the model whose config.json lies in `directory`; its weights need not be there.

        Args:
          dtype: "float32" or "bfloat16"; None: what config.json says the weights are stored in.
          expert_dtype, host_memory_budget: see `loading.load_model`.
          form: of the device that the plan is for; None: of this machine's, whose backend then starts.

        Raises:
          InputError: no supported config.json, an unsupported dtype, or a budget that is too small.
        """
        check_dtype(dtype)
        config = loaded_config(directory)
        stored = _stored_dtype(read_json(directory / "config.json"))
        used = jnp.dtype(dtype or ("bfloat16" if stored == "bfloat16" else "float32"))
        family = family_of(config)
        module = nnx.eval_shape(lambda: family.module(config, rngs=nnx.Rngs(0), dtype=used, with_experts=False))
        dense = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(nnx.state(module)))
        full = config.text.expert_layout(used)
        layout = layout_for(full, expert_dtype)
        in_file = full.size * (2 if stored in ("bfloat16", "float16") else 4)
        experts = len(config.text.moe_layers) * config.text.num_experts
        host = host_plan(full, layout, experts, in_file, host_memory_budget)
        return ModelSizes(config, dense, used, layout, host, form=form or device_form())


def _stored_dtype(values: dict[str, Any]) -> str:
    """As config.json says, in the spellings of transformers 4 and 5; float32 where it says nothing."""
    for part in (values, values.get("text_config") or {}):
        for key in ("dtype", "torch_dtype"):
            if part.get(key):
                return str(part[key])
    return "float32"


def plan_service(
    sizes: ModelSizes,
    predictor: Predictor | None,
    *,
    memory_budget: str | int | None,
    cache_fraction: float | None,
    max_batch_size: int | None,
    max_tokens: int,
    max_image_tokens: int,
    batches_per_block: int | str = 1,
) -> tuple[RequestSize, MemoryPlan]:
    """The largest request, and how memory is divided for it. Arguments as `OffloadedModel.from_pretrained`.

    Raises:
      InputError: the budget is below the minimum, the predictor is of a model of another shape, or a number is none
        that can be meant.
    """
    if max_batch_size is not None:
        max_batch_size = whole_number("max_batch_size", max_batch_size, 1)
    max_tokens = whole_number("max_tokens", max_tokens, 1)
    max_image_tokens = whole_number("max_image_tokens", max_image_tokens)
    if cache_fraction is not None:
        cache_fraction = real_number("cache_fraction", cache_fraction, "above 0 and at most 1")
    config, text, vision = sizes.config, sizes.config.text, sizes.config.vision
    if predictor is not None:
        shape = (predictor.config.moe_layers, predictor.config.num_experts)
        if shape != (len(text.moe_layers), text.num_experts):
            raise InputError(
                f"predictor: it forecasts {shape[0]} layers of {shape[1]} experts, the model has "
                f"{len(text.moe_layers)} of {text.num_experts}; train one for this model with train.predictor"
            )
    tokens = min(max_tokens, text.context)
    image = 0 if vision is None else vision.most_patches(min(max_image_tokens, tokens))

    def planned(sequences: int, batches: int) -> tuple[RequestSize, MemoryPlan]:
        size = RequestSize(sequences, tokens, 0, image * sequences, image, batches)
        return size, plan_request(
            config,
            sizes.dense_bytes,
            sizes.layout.nbytes,
            size,
            itemsize=np.dtype(sizes.dtype).itemsize,
            predictor=predictor,
            memory_budget=memory_budget,
            cache_fraction=cache_fraction,
            scratch_bytes=sizes.scratch_bytes,
            host=sizes.host,
        )

    def of_block(sequences: int) -> tuple[RequestSize, MemoryPlan]:
        if batches_per_block != "auto":
            return planned(sequences, whole_number("batches_per_block", batches_per_block, 1))
        return planned(sequences, best_block(lambda batches: planned(sequences, batches)[1]))

    if max_batch_size is None and memory_budget is not None:
        return _roomiest(of_block)
    return of_block(8 if max_batch_size is None else max_batch_size)


def _roomiest(planned: Callable[[int], tuple[RequestSize, MemoryPlan]]) -> tuple[RequestSize, MemoryPlan]:
    """The most sequences that leave experts half of what the dense parameters leave."""
    for sequences in (8, 4, 2):
        with contextlib.suppress(InputError):
            size, plan = planned(sequences)
            everything = plan.slots == plan.num_layers * plan.num_experts
            if everything or 2 * plan.slots * plan.expert_bytes >= plan.total_bytes - plan.dense_bytes:
                return size, plan
    return planned(1)


def check_request(config: ModelConfig, size: RequestSize, prompts: Sequence[Prompt], new_tokens: int) -> None:
    """Checks that the memory plan for `size` holds a batch of prompts and answers of `new_tokens`.

    Raises:
      InputError: it does not, with the argument of `from_pretrained` that would help.
    """
    if len(prompts) > size.sequences:
        raise InputError(f"{len(prompts)} sequences at once; load with max_batch_size={len(prompts)}")
    longest = max(len(p.input_ids) for p in prompts) + new_tokens
    if longest > size.prompt_tokens:
        context = config.text.context
        remedy = f"load with max_tokens={longest}" if longest <= context else f"the context is {context}; shorten it"
        raise InputError(f"prompt and answer take up to {longest} tokens of {size.prompt_tokens}; {remedy}")
    patches = sum(len(p.pixel_values) for p in prompts if p.pixel_values is not None)
    vision = config.vision
    if vision is not None and patches > size.patches:
        grids = [grid for p in prompts if p.image_grid_thw is not None for grid in p.image_grid_thw]
        images = sum(map(vision.image_tokens, grids))
        wanted = -(-images // size.sequences)
        raise InputError(f"the images take {images} tokens; load with max_image_tokens={wanted} or more")
