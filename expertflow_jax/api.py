"""The practitioner's door: load a checkpoint under a memory budget, ask it things, and see what that cost.

    model = OffloadedModel.from_pretrained("digit_scenes_moe", memory_budget="4MiB")
    print(model.generate(["Read the top row."], images=[image], max_new_tokens=4)[0].text)

Axes: B sequences, T tokens, V vocabulary, P patches, L MoE layers, K top-k.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.inference.chat import Message, encode_prompts
from expertflow_jax.inference.forecasting import Forecaster
from expertflow_jax.inference.generation import Generated, generate_batch
from expertflow_jax.inference.loading import LoadedModel, load_model, pin_experts
from expertflow_jax.inference.memory import RequestSize
from expertflow_jax.inference.planning import ModelSizes, plan_service
from expertflow_jax.inference.sampling import Sampler
from expertflow_jax.inference.served import make_forecaster, open_session
from expertflow_jax.locate import locate
from expertflow_jax.offload.budget import MemoryPlan
from expertflow_jax.offload.clock import RealClock
from expertflow_jax.offload.misses import MissPolicy, make_miss_policy
from expertflow_jax.offload.policies import CachePolicy
from expertflow_jax.offload.variant import Variant
from expertflow_jax.predictor import Predictor
from expertflow_jax.processing import end_token_ids
from expertflow_jax.processing.batching import Prompt, PromptBatch, behind_encoder, pad_prompts
from expertflow_jax.routing.trace import RoutingTrace


@dataclasses.dataclass(frozen=True)
class Answer:
    """One generated answer.

    Attributes:
      text: decoded, special tokens left out.
      token_ids: without the stop token; with those of a stop text.
      finished: met a stop token or text rather than `max_new_tokens`.
    """

    text: str
    token_ids: list[int]
    finished: bool


class OffloadedModel:
    """A MoE model whose experts live in host memory, served through an expert cache on the device."""

    def __init__(
        self,
        model: LoadedModel,
        plan: MemoryPlan,
        size: RequestSize,
        *,
        policy: str | type[CachePolicy] | CachePolicy,
        miss_policy: str | type[MissPolicy] | MissPolicy,
        predictor: Predictor | None,
        link: str,
    ):
        self._model = model
        self._plan = plan
        self._size = size
        self._predictor = predictor
        self._variant = Variant.of(policy)
        self._session = open_session(model, self._variant, plan.slots, link, RealClock(), miss_policy=miss_policy)
        self._engine = self._session.engine
        self._tokens = 0

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
    ) -> "OffloadedModel":
        """Loads a checkpoint: dense parameters onto the device, experts into pinned host memory, what is left on disk.

        Args:
          path_or_hub_id: a directory with config.json and safetensors, a hub id, or a committed model's name.
          memory_budget: bytes of device memory for everything ("8GiB"), which decides the number of expert slots.
          cache_fraction: slots / experts instead; with neither, all experts are resident.
          policy: a cache policy: a name of `offload.policies.POLICIES` (but `oracle`, which needs a recorded run),
            "package.module:Class", a class or an object.
          miss_policy: "wait" is lossless; "drop" and "substitute" change answers.
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

        Raises:
          InputError: unknown names, a budget below the minimum, a malformed checkpoint, or another model's predictor.
        """
        if Variant.of(policy).forecast == "truth":
            raise InputError(f"policy {policy!r} needs the recorded routing of the same run; use eval.study")
        make_miss_policy(miss_policy)
        model = load_model(path_or_hub_id, dtype, expert_dtype=expert_dtype, host_memory_budget=host_memory_budget)
        forecaster = None
        if predictor is not None:
            forecaster = Predictor.load(locate(predictor, "predictor"), expect_fingerprint=model.fingerprint)
        pin_experts(model.store, None if forecaster is None else forecaster.popularity)
        size, plan = plan_service(
            ModelSizes.of(model),
            forecaster,
            memory_budget=memory_budget,
            cache_fraction=cache_fraction,
            max_batch_size=max_batch_size,
            max_tokens=max_tokens,
            max_image_tokens=max_image_tokens,
        )
        return cls(model, plan, size, policy=policy, miss_policy=miss_policy, predictor=forecaster, link=link)

    def logits(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None = None,
        decoder_input_ids: np.ndarray | None = None,
        pixel_values: np.ndarray | None = None,
        image_grid_thw: np.ndarray | None = None,
        pixel_mask: np.ndarray | None = None,
    ) -> np.ndarray:
        """Logits of every position of right-padded prompts, as Hugging Face's forward gives them.

        Args:
          input_ids: int [B, T].
          attention_mask: 0/1 [B, T], ones first; None: no padding.
          decoder_input_ids: int [B, T'], what the decoder of an encoder-decoder reads (pad on the right); None: its
            start token alone.
          pixel_values: float32 [P, patch_dim] of all images in the order of the prompts, or what else the family's
            Hugging Face processor gives: [images, 3, height, width] for Aria.
          image_grid_thw: int [images, 3], with patches.
          pixel_mask: bool [images, height, width], what is not padding, with whole images.

        Returns:
          float32 [B, T, V], of an encoder-decoder [B, T', V]; rows of padding are meaningless.

        Raises:
          InputError: shapes that do not fit, left padding, tokens outside the vocabulary, or more than the memory plan
            holds.
        """
        prompts = self._split(input_ids, attention_mask, decoder_input_ids, pixel_values, image_grid_thw, pixel_mask)
        batch, hidden = self._prefill(prompts)
        first = np.zeros_like(batch.lengths) if batch.encoder_lengths is None else batch.encoder_lengths
        width = np.shape(input_ids)[1] if batch.encoder_lengths is None else int((batch.lengths - first).max())
        # One position of all prompts at a time: logits of B rows are what the memory plan holds.
        logits = [self._session.last_logits(hidden, first + place + 1) for place in range(width)]
        return np.stack(logits, axis=1)[: len(prompts)]

    def routing_trace(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None = None,
        decoder_input_ids: np.ndarray | None = None,
        pixel_values: np.ndarray | None = None,
        image_grid_thw: np.ndarray | None = None,
        pixel_mask: np.ndarray | None = None,
    ) -> RoutingTrace:
        """The experts that prompts choose: `.experts` int32 [B, T, L, K], -1 on padding. Arguments as `logits`.

        Of an encoder-decoder, L counts the encoder's MoE layers, then the decoder's, and T the tokens of both: a
        prompt's, then without a gap those of the decoder. -1 there where a token does not go through a layer, and where
        its expert had no capacity left.
        """
        prompts = self._split(input_ids, attention_mask, decoder_input_ids, pixel_values, image_grid_thw, pixel_mask)
        self._session.records = []
        batch, _ = self._prefill(prompts)
        record = self._session.records[0]
        self._session.records = None
        width = np.shape(input_ids)[1] if batch.encoder_lengths is None else int(batch.lengths.max())
        return RoutingTrace(
            experts=record.expert_ids[: len(prompts), :width],
            num_experts=self._model.store.num_experts,
            lengths=batch.lengths[: len(prompts)],
            model_fingerprint=self._model.fingerprint,
        )

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Message] | Sequence[Sequence[Message]] | np.ndarray | Sequence[Any],
        images: Sequence[Any] | None = None,
        *,
        decoder_input_ids: np.ndarray | None = None,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        stream: Callable[[int, str], None] | None = None,
    ) -> list[Answer]:
        """Answers prompts, in batches of at most `max_batch_size`.

        Args:
          prompts: text (put into the chat template as the user's turn; continued as it stands if the checkpoint has
            no template), one conversation or several in the chat format, or token ids: int [B, T] or ragged lists.
          images: for texts: one image (PIL, uint8 [H, W, 3], or path) per prompt, or None for prompts without; for
            conversations: the images of their image items, in order.
          decoder_input_ids: int [B, T'], what the decoder of an encoder-decoder begins with; None: its start token.
          max_new_tokens: length limit of each answer.
          temperature: 0 is greedy.
          top_k, top_p: sampling from the k likeliest, or the smallest set of probability p.
          seed: of sampling.
          stop: texts that end an answer; they are not part of it.
          stream: called with (prompt index, text so far) as each token comes.

        Raises:
          InputError: no tokenizer in the checkpoint, a prompt that is too long, or an image that is none.
        """
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise InputError(f"max_new_tokens: {max_new_tokens!r} should be a whole number of at least 1")
        processor = self._model.processor
        encoded = encode_prompts(processor, str(self._model.path), prompts, images)
        encoded = behind_encoder(self._model.config, encoded, decoder_input_ids)
        stop = [stop] if isinstance(stop, str) else list(stop)
        if stop and (processor is None or "" in stop):
            raise InputError("stop: want texts that are not empty, and a checkpoint with tokenizer.json")
        sampler = Sampler(temperature, top_k, top_p, seed)
        answers: list[Answer] = []
        for start in range(0, len(encoded), self._size.sequences):
            chosen = encoded[start : start + self._size.sequences]
            self._check_size(chosen, max_new_tokens)
            so_far: list[list[int]] = [[] for _ in chosen]

            def on_token(row: int, token: int, start: int = start, so_far: list[list[int]] = so_far) -> bool:
                so_far[row].append(token)
                if processor is None or not (stop or stream):
                    return False
                text = processor.decode(so_far[row])
                shown = _before(text, stop)
                if stream is not None:
                    stream(start + row, shown)
                return shown != text

            generated = generate_batch(
                self._session,
                chosen,
                self._forecaster(),
                max_new_tokens=[max_new_tokens] * len(chosen),
                stop_ids=processor.eos_token_ids if processor is not None else end_token_ids(self._model.path),
                sampler=sampler,
                on_token=on_token,
            )
            self._tokens += sum(len(p.input_ids) for p in chosen) + sum(len(g.token_ids) for g in generated)
            answers += [self._answer(g, stop) for g in generated]
        return answers

    def stats(self) -> dict[str, Any]:
        """Counts, bytes and seconds since loading, by the row keys of a study where they apply."""
        stats = self._engine.stats()
        wall = stats["wall_seconds"]
        return stats | {
            "tokens": self._tokens,
            "tokens_per_second": self._tokens / wall if wall else 0.0,
            "memory_budget_bytes": self._plan.total_bytes,
            "peak_device_bytes": self._session.peak_device_bytes,
            "cache_fraction": self._plan.cache_fraction,
            "miss_policy": self._session.miss_policy.name,
            "expert_dtype": self._model.expert_dtype,
            "lossless": self._session.miss_policy.lossless and self._variant.lossless and not self._model.quantized,
        }

    def reset_stats(self) -> None:
        """Starts the counts anew; the cache stays as it is."""
        self._engine.reset_stats()
        self._tokens = 0

    def memory_plan(self) -> MemoryPlan:
        """Bytes per tier and part."""
        return self._plan

    def close(self) -> None:
        """Stops the transfer thread and frees the slots."""
        self._engine.close()

    def __enter__(self) -> "OffloadedModel":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _answer(self, generated: Generated, stop: Sequence[str]) -> Answer:
        processor = self._model.processor
        text = processor.decode(generated.token_ids) if processor is not None else ""
        return Answer(_before(text, stop), generated.token_ids, generated.finished)

    def _forecaster(self) -> Forecaster:
        return make_forecaster(self._session, self._variant, self._predictor)

    def _prefill(self, prompts: list[Prompt]) -> tuple[PromptBatch, Any]:
        self._check_size(prompts, 0)
        batch = pad_prompts(self._model.config, prompts)
        x, deepstack = self._session.embed(batch)
        sequences = self._session.start(batch, 0)
        horizon = self._forecaster().prefill(x, batch.lengths, batch.visits(self._model.config.text))
        hidden = self._session.prefill(batch, sequences, x, deepstack, horizon)
        self._tokens += int(batch.lengths.sum())
        return batch, hidden

    def _check_size(self, prompts: Sequence[Prompt], new_tokens: int) -> None:
        if len(prompts) > self._size.sequences:
            raise InputError(f"{len(prompts)} sequences at once; load with max_batch_size={len(prompts)}")
        longest = max(len(p.input_ids) for p in prompts) + new_tokens
        if longest > self._size.prompt_tokens:
            context = self._model.config.text.context
            remedy = (
                f"load with max_tokens={longest}" if longest <= context else f"the context is {context}; shorten it"
            )
            raise InputError(f"prompt and answer take up to {longest} tokens of {self._size.prompt_tokens}; {remedy}")
        patches = sum(len(p.pixel_values) for p in prompts if p.pixel_values is not None)
        vision = self._model.config.vision
        if vision is not None and patches > self._size.patches:
            grids = [grid for p in prompts if p.image_grid_thw is not None for grid in p.image_grid_thw]
            images = sum(map(vision.image_tokens, grids))
            wanted = -(-images // self._size.sequences)
            raise InputError(f"the images take {images} tokens; load with max_image_tokens={wanted} or more")

    def _split(
        self, input_ids, attention_mask, decoder_input_ids, pixel_values, image_grid_thw, pixel_mask
    ) -> list[Prompt]:
        """One `Prompt` per row of right-padded arrays."""
        ids = np.asarray(input_ids)
        if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise InputError(f"input_ids: want integers [B, T], got {ids.dtype} {ids.shape}")
        mask = np.ones(ids.shape, bool) if attention_mask is None else np.asarray(attention_mask).astype(bool)
        if mask.shape != ids.shape or (np.diff(mask.astype(int), axis=1) > 0).any() or not mask[:, 0].all():
            raise InputError("attention_mask: want the shape of input_ids, and ones before zeros (pad on the right)")
        rows = [row[valid].astype(np.int32) for row, valid in zip(ids, mask, strict=True)]
        config: Any = self._model.config
        prompts = behind_encoder(config, [Prompt(own) for own in rows], decoder_input_ids)
        if pixel_values is None and image_grid_thw is None:
            return prompts
        if config.vision is None:
            raise InputError("pixel_values: the model takes no images")
        if pixel_values is None:
            raise InputError("image_grid_thw: give it with pixel_values")
        pixel_values, grids = config.vision.pack(pixel_values, image_grid_thw, pixel_mask)
        seen, image, patch = [], 0, 0
        for own in rows:
            places = int((own == config.image_token_id).sum())
            first, begin = image, patch
            while image < len(grids) and places > 0:
                places -= config.vision.image_tokens(grids[image])
                patch += int(np.prod(grids[image]))
                image += 1
            if patch == begin:
                seen.append(Prompt(own))
            else:
                seen.append(Prompt(own, pixel_values[begin:patch], grids[first:image]))
        if image < len(grids):
            raise InputError(f"the prompts have places for {image} images, {len(grids)} were given")
        return seen


def _before(text: str, stop: Sequence[str]) -> str:
    """What stands before the first of the stop texts."""
    return text[: min((place for mark in stop if (place := text.find(mark)) >= 0), default=len(text))]
