"""The practitioner's door: load a checkpoint under a memory budget, ask it things, and see what that cost.

    model = OffloadedModel.from_pretrained("digit_scenes_moe", memory_budget="4MiB")
    print(model.generate(["Read the top row."], images=[image], max_new_tokens=4)[0].text)

Axes: B sequences, T tokens, V vocabulary, P patches, L MoE layers, K top-k.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from expertflow_jax import compilation_cache, gpu_caps
from expertflow_jax.errors import InputError
from expertflow_jax.inference.answers import Answer, Wishes, answer_batches
from expertflow_jax.inference.arguments import whole_number
from expertflow_jax.inference.chat import Message
from expertflow_jax.inference.forecasting import Forecaster
from expertflow_jax.inference.loading import LoadedModel, load_model, pin_experts
from expertflow_jax.inference.members import Member
from expertflow_jax.inference.memory import RequestSize
from expertflow_jax.inference.planning import ModelSizes, check_request, plan_service
from expertflow_jax.inference.pregated import gate_bytes
from expertflow_jax.inference.requests import ProcessorArrays, read_prompts, read_right_padded, read_stops
from expertflow_jax.inference.sampling import Sampler
from expertflow_jax.inference.served import make_forecaster, open_session, quantized_copies
from expertflow_jax.inference.turns import Turns
from expertflow_jax.locate import locate
from expertflow_jax.models.device_form import GPU, named_form
from expertflow_jax.offload.budget import MemoryPlan
from expertflow_jax.offload.clock import RealClock
from expertflow_jax.offload.misses import MissPolicy, make_miss_policy
from expertflow_jax.offload.policies import CachePolicy, make_policy
from expertflow_jax.offload.variant import Variant
from expertflow_jax.predictor import Predictor, load_predictor
from expertflow_jax.processing.batching import PromptBatch, pad_prompts
from expertflow_jax.routing.trace import RoutingTrace

__all__ = ["Answer", "OffloadedModel"]


class OffloadedModel:
    """A MoE model whose experts live in host memory, served through an expert cache on the device.

    Threads take turns: `generate`, `logits`, `routing_trace` and `reset_stats` wait until another thread's call is
    over; `stats`, `memory_plan` and `close` do not. A `stream` callback may call the latter three; the others are
    refused inside a callback of the same model. After `close` every call raises InputError, and so does one that runs
    in another thread at that moment. A model that nobody holds any more is closed.
    """

    def __init__(
        self,
        model: LoadedModel,
        plan: MemoryPlan,
        size: RequestSize,
        *,
        policy: str | type[CachePolicy] | CachePolicy,
        misses: MissPolicy,
        copies: LoadedModel | None,
        predictor: Predictor | None,
        link: str,
    ):
        self._model = model
        self._plan = plan
        self._size = size
        self._predictor = predictor
        self._turns = Turns()
        self._variant = Variant.of(policy)
        self._session = open_session(
            model, self._variant, plan.slots, link, RealClock(), miss_policy=misses, copies=copies
        )
        self._engine = self._session.engine
        self._tokens = 0
        self._tokens_saved = 0

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str,
        *,
        memory_budget: str | int | None = None,
        cache_fraction: float | None = None,
        policy: str | type[CachePolicy] | CachePolicy = "expertflow",
        miss_policy: str | type[MissPolicy] | MissPolicy = "wait",
        predictor: str | None = None,
        dtype: str | None = None,
        expert_dtype: str | None = None,
        host_memory_budget: str | int | None = None,
        link: str = "direct",
        max_batch_size: int | None = None,
        max_tokens: int = 1024,
        max_image_tokens: int = 256,
        batches_per_block: int | str = 1,
        device_form: str | None = None,
    ) -> "OffloadedModel":
        """Loads a checkpoint: dense parameters onto the device, experts into pinned host memory, what is left on disk.

        Args:
          path_or_hub_id: a directory with config.json and safetensors, a hub id, or a committed model's name.
          memory_budget: bytes of device memory for everything ("8GiB"), which decides the number of expert slots.
          cache_fraction: slots / experts instead; with neither, all experts are resident.
          policy: a cache policy: a name of `offload.policies.POLICIES` (but `oracle`, which needs a recorded run),
            "package.module:Class", a class or an object.
          miss_policy: "wait" is lossless; the others of `offload.misses.MISS_POLICIES` change answers, as do options
            in the name: "drop_weak(below=0.5)". One with quantised copies keeps those in host memory too, beyond
            `host_memory_budget`.
          predictor: directory or committed name of the model's routing path predictor; None forecasts nothing.
          dtype: "float32" or "bfloat16"; the checkpoint's own by default.
          expert_dtype: "int8" or "int4" keeps and moves experts quantised, two and four times smaller than bfloat16;
            lossy. None keeps them in `dtype`.
          host_memory_budget: bytes of host memory for experts; those beyond it stay in the checkpoint's files and are
            read when they are fetched. None: as much as they take.
          link: "direct", or "emulated(GB/s,microseconds)".
          max_batch_size, max_tokens, max_image_tokens: the largest request that the memory plan must hold:
            sequences, tokens of each (prompt and answer), image tokens of each. Without `max_batch_size`: 8,
            or with a budget the largest of 8, 4, 2 and 1 that leaves half of what dense parameters leave to experts.
          batches_per_block: batches that `generate` may bring through the layers together, so that each expert travels
            once for all of them; the memory plan holds their KV caches and hidden states. "auto": see
            `inference.planning.best_block`.
          device_form: how experts lie on the device: "in_place", "replaced" or "pool" (see `models.device_form`);
            None: what suits the device. If a kernel fails on a GPU: "replaced", where all are XLA's.

        Raises:
          InputError: unknown names, a budget below the minimum, a number that cannot be meant, a malformed checkpoint,
            or another model's predictor.
        """
        compilation_cache.enable()
        if Variant.of(policy).forecast == "truth":
            raise InputError(f"policy {policy!r} needs the recorded routing of the same run; use eval.study")
        misses, form = make_miss_policy(miss_policy), named_form(device_form)
        directory = locate(_path("path_or_hub_id", path_or_hub_id))
        largest: dict[str, Any] = {
            "memory_budget": memory_budget,
            "cache_fraction": cache_fraction,
            "max_batch_size": max_batch_size,
            "max_tokens": max_tokens,
            "max_image_tokens": max_image_tokens,
            "batches_per_block": batches_per_block,
        }
        if gpu_caps.awaits_gpu(os.environ):  # XLA's caps can be raised until the first array is made
            described = ModelSizes.described_in(directory, dtype, expert_dtype, host_memory_budget, form or GPU)
            described = described.with_copies(misses)
            _, plan = plan_service(described, None, **largest)
            gpu_caps.prepare(gpu_caps.Needs(described.pinned_bytes, plan.total_bytes))
        model = load_model(
            str(directory), dtype, expert_dtype=expert_dtype, host_memory_budget=host_memory_budget, form=form
        )
        forecaster = None
        if predictor is not None:
            folder = locate(_path("predictor", predictor), "predictor")
            forecaster = load_predictor(folder, expect_fingerprint=model.fingerprint)
        pin_experts(model.store, None if forecaster is None else forecaster.popularity)
        copies = quantized_copies(model, misses) if misses.copies else None
        sizes = dataclasses.replace(
            ModelSizes.of(model),
            dense_bytes=model.stages.dense_bytes + gate_bytes(make_policy(Variant.of(policy).policy), model),
            copies=None if copies is None else copies.stages.layout,
        )
        size, plan = plan_service(sizes, forecaster, **largest)
        gpu_caps.check(gpu_caps.Needs(device_bytes=plan.total_bytes))
        return cls(model, plan, size, policy=policy, misses=misses, copies=copies, predictor=forecaster, link=link)

    def logits(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        pixel_values: Any = None,
        image_grid_thw: Any = None,
        pixel_mask: Any = None,
        *,
        token_type_ids: Any = None,
        mm_token_type_ids: Any = None,
    ) -> Float[np.ndarray, "B T V"]:
        """Logits of every position of right-padded prompts, as Hugging Face's forward gives them.

        Args, each an array or what NumPy reads as one:
          input_ids: int [B, T].
          attention_mask: 0/1 [B, T], ones first; None: no padding.
          decoder_input_ids: int [B, T'], what the decoder of an encoder-decoder reads (pad on the right); None: its
            start token alone.
          pixel_values: float32 [P, patch_dim] of all images in the order of the prompts, or what else the family's
            Hugging Face processor gives: [images, 3, height, width] for Aria.
          image_grid_thw: int [images, 3], with patches.
          pixel_mask: bool [images, height, width], what is not padding, with whole images.
          token_type_ids, mm_token_type_ids: processors give them too; they follow from `input_ids` and are not read.

        Returns:
          float32 [B, T, V], of an encoder-decoder [B, T', V]; rows of padding are meaningless.

        Raises:
          InputError: shapes that do not fit, left padding, tokens outside the vocabulary, more than the memory plan
            holds, or a closed model.
        """
        arrays = ProcessorArrays(input_ids, attention_mask, pixel_values, image_grid_thw, pixel_mask)
        with self._turns.take("logits"):
            count, batch, hidden_BxTxD = self._prefill(arrays, decoder_input_ids)
            first = np.zeros_like(batch.lengths) if batch.encoder_lengths is None else batch.encoder_lengths
            width = np.shape(input_ids)[1] if batch.encoder_lengths is None else int((batch.lengths - first).max())
            # One position of all prompts at a time: logits of B rows are what the memory plan holds.
            logits = [self._session.last_logits(hidden_BxTxD, first + place + 1) for place in range(width)]
            return np.stack(logits, axis=1)[:count]

    def routing_trace(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        pixel_values: Any = None,
        image_grid_thw: Any = None,
        pixel_mask: Any = None,
        *,
        token_type_ids: Any = None,
        mm_token_type_ids: Any = None,
    ) -> RoutingTrace:
        """The experts that prompts choose: `.experts` int32 [B, T, L, K], -1 on padding. Arguments as `logits`.

        Of an encoder-decoder, L counts the encoder's MoE layers, then the decoder's, and T the tokens of both: a
        prompt's, then without a gap those of the decoder. -1 there where a token does not go through a layer, and where
        its expert had no capacity left.
        """
        arrays = ProcessorArrays(input_ids, attention_mask, pixel_values, image_grid_thw, pixel_mask)
        with self._turns.take("routing_trace"):
            self._session.records = []
            try:
                count, batch, _ = self._prefill(arrays, decoder_input_ids)
                record = self._session.records[0]
            finally:
                self._session.records = None
            width = np.shape(input_ids)[1] if batch.encoder_lengths is None else int(batch.lengths.max())
            return RoutingTrace(
                experts=record.expert_ids[:count, :width],
                num_experts=self._model.store.num_experts,
                lengths=batch.lengths[:count],
                model_fingerprint=self._model.fingerprint,
            )

    def generate(
        self,
        prompts: str | Message | Sequence[str] | Sequence[Message] | Sequence[Sequence[Message]] | Any = None,
        images: Any = None,
        *,
        input_ids: Any = None,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        pixel_values: Any = None,
        image_grid_thw: Any = None,
        pixel_mask: Any = None,
        token_type_ids: Any = None,
        mm_token_type_ids: Any = None,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        stream: Callable[[int, str], Any] | None = None,
        batch_size: int | None = None,
        batches_per_block: int | None = None,
    ) -> list[Answer]:
        """Answers prompts, in batches of at most `max_batch_size`.

        Args:
          prompts: text (put into the chat template as the user's turn; continued as it stands if the checkpoint has
            no template), one message, one conversation or several in the chat format, token ids (int [B, T], [T], or
            ragged lists), or what a Hugging Face processor returned.
          images: an image is a PIL image, uint8 [H, W, 3], or a path. For texts: one image (or a list of several) per
            prompt, or None for prompts without; for conversations: the images of their image items, in order, or a list
            of them for each conversation. One image alone need not be in a list.
          input_ids, attention_mask, pixel_values, image_grid_thw, pixel_mask, token_type_ids, mm_token_type_ids:
            instead of prompts, what a Hugging Face processor made of them, as for `logits`:
            `generate(**processor(...))`. Padding may stand left or right.
          decoder_input_ids: int [B, T'], what the decoder of an encoder-decoder begins with; None: its start token.
          max_new_tokens: length limit of each answer.
          temperature: 0 is greedy.
          top_k, top_p: sampling from the k likeliest, or the smallest set of probability p.
          seed: of sampling, 0 or more. A sample depends on it, on the prompt and on its place among `prompts`, not on
            the batches that are formed.
          stop: texts that end an answer; they are not part of it.
          stream: called with (prompt index, text so far) as each token comes, and once more at the end if that makes
            more of the text certain. The text only grows, to the answer's: a character of several tokens comes when it
            is whole, and what may become a stop text when it did not. Prompts of one block come in turns.
          batch_size: prompts of a batch, up to `max_batch_size`; None: as many.
          batches_per_block: batches that go through the layers together, up to what the model was loaded for; None: as
            many. One that has ended makes room for the next. Answers do not depend on it: more of them cost memory and
            the time until a first token, and spare transfers.

        Raises:
          InputError: no tokenizer in the checkpoint, a prompt that is too long, an image that is none, token ids
            outside the vocabulary, numbers that cannot be meant, or a closed model.
        """
        arrays = ProcessorArrays(
            input_ids, attention_mask, pixel_values, image_grid_thw, pixel_mask, token_type_ids, mm_token_type_ids
        )
        with self._turns.take("generate"):
            wishes = Wishes(
                whole_number("max_new_tokens", max_new_tokens, 1),
                Sampler(temperature, top_k, top_p, seed),
                read_stops(self._model, stop),
                self._shower(stream),
                self._turns.check_open,
            )
            size, block = self._block(batch_size, batches_per_block)
            encoded = read_prompts(self._model, prompts, images, arrays, decoder_input_ids)
            batches = [encoded[start : start + size] for start in range(0, len(encoded), size)]
            for batch in batches:
                check_request(self._model.config, self._size, batch, wishes.new_tokens)
            forecaster = self._forecaster()
            answers = list(answer_batches(self._model, self._session, forecaster, batches, wishes, block))
            self._tokens_saved += forecaster.tokens_saved
            self._tokens += sum(len(p.input_ids) for p in encoded) + sum(len(a.token_ids) for a in answers)
            return answers

    def stats(self) -> dict[str, Any]:
        """Counts, bytes and seconds since loading, by the row keys of a study where they apply."""
        self._turns.check_open()
        stats = self._engine.stats()
        wall = stats["wall_seconds"]
        return stats | {
            "tokens": self._tokens,
            "tokens_per_second": self._tokens / wall if wall else 0.0,
            "batches_per_block": self._size.batches,
            "predictor_tokens_saved": self._tokens_saved,
            "memory_budget_bytes": self._plan.total_bytes,
            "peak_device_bytes": self._session.peak_device_bytes,
            "cache_fraction": self._plan.cache_fraction,
            "miss_policy": self._session.miss_policy.name,
            "expert_dtype": self._model.expert_dtype,
            "lossless": self._session.miss_policy.lossless and self._variant.lossless and not self._model.quantized,
        }

    def reset_stats(self) -> None:
        """Starts the counts anew; the cache stays as it is."""
        with self._turns.take("reset_stats"):
            self._engine.reset_stats()
            self._tokens = self._tokens_saved = 0

    def memory_plan(self) -> MemoryPlan:
        """Bytes per tier and part."""
        self._turns.check_open()
        return self._plan

    def close(self) -> None:
        """Stops the transfer thread and frees the slots; further calls do nothing. A call that runs in another thread
        ends with an InputError."""
        self._turns.closed = True
        self._engine.close()

    def __enter__(self) -> "OffloadedModel":
        self._turns.check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _shower(self, stream: Any) -> Callable[[int, str], None] | None:
        """What shows the text so far to the caller."""
        if stream is None:
            return None
        if self._model.processor is None or not callable(stream):
            raise InputError("stream: want a function, and a checkpoint with tokenizer.json")
        return functools.partial(self._turns.call_back, stream)

    def _block(self, batch_size: int | None, batches_per_block: int | None) -> tuple[int, int]:
        """Prompts of a batch, and batches that run at once.

        Raises:
          InputError: more than the memory plan holds.
        """
        sizes = []
        for name, wanted, most, remedy in (
            ("batch_size", batch_size, self._size.sequences, "max_batch_size"),
            ("batches_per_block", batches_per_block, self._size.batches, "batches_per_block"),
        ):
            number = most if wanted is None else whole_number(name, wanted, 1)
            if number > most:
                raise InputError(f"{name}: {number}, the memory plan holds {most}; load with {remedy}={number}")
            sizes.append(number)
        return sizes[0], sizes[1]

    def _forecaster(self) -> Forecaster:
        return make_forecaster(self._session, self._variant, self._predictor)

    def _prefill(
        self, arrays: ProcessorArrays, decoder_input_ids: Any
    ) -> tuple[int, PromptBatch, Float[jax.Array, "B T D"]]:
        """Brings right-padded prompts through the layers.

        Returns:
          Their number; the padded batch, whose rows beyond that number are padding; its final hidden states.
        """
        prompts = read_right_padded(self._model.config, arrays, decoder_input_ids)
        check_request(self._model.config, self._size, prompts, 0)
        batch = pad_prompts(self._model.config, prompts)
        x, deepstack = self._session.embed(batch)
        sequences = self._session.start(batch, 0)
        member = Member.prefill(batch, sequences, x, deepstack)
        horizon = self._forecaster().horizon([member], [False])
        [hidden_BxTxD] = self._session.super_step([member], horizon)
        self._tokens += int(batch.lengths.sum())
        return len(prompts), batch, hidden_BxTxD


def _path(name: str, value: Any) -> str:
    """A path or a name as text."""
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{name}: {value!r} is no name; give a directory, a hub id or a committed name")
    return os.fspath(value)
