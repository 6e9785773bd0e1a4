"""The compiled stages of a model: each jitted once and shared by every layer of the same structure.

Modules are split once with `nnx.split`; at run time only tuples of arrays pass through `jax.jit` (an `nnx.jit` call
costs milliseconds at 48 layers, and an `nnx.State` is taken apart in Python at every call, which takes longer than the
call itself). Axes: B sequences, T new tokens, S cache length, N = B * T, K top-k, D model
width, E experts, n experts in a group, C rows of an expert.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from expertflow_jax.inference.layer_stages import Attended, KeysValues, LayerStages, Uncombined, Weights, combine
from expertflow_jax.inference.rows import NO_EXPERT, group_shapes, tiles_among
from expertflow_jax.inference.selection import can_select, run_selected, whole_step
from expertflow_jax.models import experts
from expertflow_jax.models.device_form import IN_PLACE, DeviceForm, device_form
from expertflow_jax.models.expert_kernel import run_tiles
from expertflow_jax.offload.slot_memory import PooledArrays, PooledExpert, SlotMemory
from expertflow_jax.processing.batching import PromptBatch


class Stages:
    """Compiled functions over the dense parameters of one model. Experts are passed in as their arrays.

    Attributes:
      dense_bytes: device bytes of everything but the experts.
      layout: of which arrays an expert consists.
      form: how experts lie and run; engines that serve the model take the same one.
      layer_stages: of each layer, shared by layers of one structure.
      layer_weights, trunk_weights: the parameters on the device, of each layer and of the rest.
    """

    def __init__(
        self,
        module: Any,
        device: jax.Device | None = None,
        form: DeviceForm | None = None,
        put: Callable[..., Any] = jax.device_put,
    ):
        """
        Args:
          module: a model of `expertflow_jax.models` built with `with_experts=False`.
          device: the first local one by default.
          form: how experts lie and run; what suits the device by default.
          put: (array, device) -> the array there. With another one, stages of a model without weights can be compiled
            for a device that is not there.
        """
        self.config = module.config
        device = device or jax.local_devices()[0]
        layers = list(module.layers)
        self.is_moe = [layer.is_moe for layer in layers]
        self.moe_layers = [i for i, moe in enumerate(self.is_moe) if moe]
        self.layer_weights: list[Weights] = []
        placed: dict[int, tuple[Any, jax.Array]] = {}  # what layers share (Switch's position biases) is there once

        def place(array: Any) -> jax.Array:
            if id(array) not in placed:  # the array is kept too, so that no other has its id
                placed[id(array)] = array, put(array, device)
            return placed[id(array)][1]

        compiled: dict[Any, LayerStages] = {}  # by structure
        self.layer_stages = []
        for layer in layers:
            graphdef, state = nnx.split(layer)
            weights, treedef = jax.tree.flatten(state)
            if graphdef not in compiled:
                compiled[graphdef] = LayerStages(graphdef, treedef)
            self.layer_stages.append(compiled[graphdef])
            self.layer_weights.append(tuple(map(place, weights)))
        self._structures = list(compiled.values())
        module.layers, module.experts = nnx.List([]), nnx.List([])
        trunk_def, trunk = nnx.split(module)
        module.layers = nnx.List(layers)
        weights, self._trunk_treedef = jax.tree.flatten(trunk)
        self.trunk_weights: Weights = tuple(map(place, weights))
        self.dense_bytes = sum(array.size * array.dtype.itemsize for _, array in placed.values())
        text = self.config.text
        self.dtype = module.dtype
        self._use(text.expert_layout(module.dtype), (form or device_form(device)).on(device))

        def merged(weights: Weights) -> Any:
            return nnx.merge(trunk_def, jax.tree.unflatten(self._trunk_treedef, weights))

        self._vision = jax.jit(lambda weights, pixels, where: merged(weights).vision_stage(pixels, where))
        self._embed = jax.jit(lambda weights, ids, images, index: merged(weights).embed_stage(ids, images, index))
        self._head = jax.jit(lambda weights, x: merged(weights).head_stage(x))
        self._deepstack = jax.jit(lambda weights, x, visual, index: merged(weights).add_deepstack(x, visual, index))

        self._combine = jax.jit(combine)
        # With its sharding stated it counts to the jit cache as what `run_experts` returns: one program for both.
        self._memory = jax.sharding.SingleDeviceSharding(device, memory_kind="device")
        self._zeros = jax.jit(
            lambda rows: jnp.zeros((rows, text.hidden_size), self.dtype), static_argnums=0, out_shardings=self._memory
        )
        # A call that gives back what it is given takes a tenth of the time of `device_put`.
        self._locate = jax.jit(_given, out_shardings=self._memory)
        self._numbers: dict[int, jax.Array] = {}  # of experts and slots: naming one uploads nothing

    def _use(self, layout: experts.BufferLayout, form: DeviceForm) -> None:
        def run(out: jax.Array, y: jax.Array, rows: jax.Array, *buffers: experts.Parts) -> jax.Array:
            return experts.run_expert_group(layout, buffers, rows, y.reshape(-1, y.shape[-1]), out, form.apart)

        def tiles(out: jax.Array, y: jax.Array, table: jax.Array, *pool: jax.Array) -> jax.Array:
            return run_tiles(layout, pool, table, y.reshape(-1, y.shape[-1]), out, form.interpreted)

        def named(
            out: jax.Array, y: jax.Array, ids: jax.Array, tiles: Any, slots: Any, size: int, *pool: jax.Array
        ) -> jax.Array:
            rows = tiles_among(ids, jnp.stack(tiles), size)
            table = jnp.concatenate([jnp.stack(slots)[:, None], rows], axis=1)  # [t, 1 + R]
            return run_tiles(layout, pool, table, y.reshape(-1, y.shape[-1]), out, form.interpreted)

        def select(parts: Sequence[experts.Parts], y: jax.Array, ids: jax.Array) -> jax.Array:
            return run_selected(layout, parts, y, ids)

        self.layout, self.form = layout, form
        self._compiled: set[tuple[int, int, int]] = set()  # (B, T, slots of a pool) that `precompile` has seen
        self._run = jax.jit(run, donate_argnums=0)
        self._run_tiles = jax.jit(tiles, donate_argnums=0)
        self._run_named = jax.jit(named, static_argnums=5, donate_argnums=0)
        self._whole: Any = whole_step(self, select)

    @property
    def layer_states(self) -> list[Any]:
        """`layer_weights` as states of NNX modules."""
        pairs = zip(self.layer_stages, self.layer_weights, strict=True)
        return [jax.tree.unflatten(stages.treedef, weights) for stages, weights in pairs]

    @property
    def trunk(self) -> Any:
        """`trunk_weights` as the state of an NNX module without layers."""
        return jax.tree.unflatten(self._trunk_treedef, self.trunk_weights)

    def with_layout(self, layout: experts.BufferLayout) -> "Stages":
        """The same dense parameters, serving experts of another layout."""
        return self._with(layout, self.form)

    def with_form(self, form: DeviceForm) -> "Stages":
        """The same model on a device that is treated as another."""
        return self._with(self.layout, form)

    def _with(self, layout: experts.BufferLayout, form: DeviceForm) -> "Stages":
        other = copy.copy(self)
        other._use(layout, form)
        return other

    def embed_prompts(self, batch: PromptBatch) -> tuple[jax.Array, jax.Array | None]:
        """Input embeddings with images merged in [B, T, D], and DeepStack features (None without images)."""
        images = deepstack = None
        if batch.pixel_values is not None:
            images, deepstack = self.vision(batch.pixel_values, batch.vision_positions)
        return self.embed(batch.input_ids, images, batch.embed_index), deepstack

    def vision(self, pixel_values: np.ndarray, where: Any) -> tuple[jax.Array, jax.Array]:
        """Patches to image embeddings [N_image_tokens, D] and DeepStack features [n, N_image_tokens, D]."""
        return self._vision(self.trunk_weights, pixel_values, where)

    def embed(self, ids: np.ndarray, images: jax.Array | None, index: np.ndarray | None) -> jax.Array:
        """Token ids [B, T] with image embeddings merged in: [B, T, D]."""
        return self._embed(self.trunk_weights, ids, images, index)

    def locate(self, *where: Any) -> tuple[jax.Array, ...]:
        """Positions, start and lengths on the device, for all layers of a step."""
        return self._locate(*where)

    def attend_and_route(self, layer: int, x: jax.Array | Uncombined, kv: KeysValues, *where: Any) -> Attended:
        """Attention and router of MoE layer `layer` (index among all layers); donates `kv` and the `out` of `x`."""
        out, rest = (x.out, (x.h, x.weights)) if isinstance(x, Uncombined) else (None, x)
        return self.layer_stages[layer].attend(self.layer_weights[layer], (kv, out), rest, *where)

    def dense_layer(
        self, layer: int, x: jax.Array | Uncombined, kv: KeysValues, *where: Any
    ) -> tuple[KeysValues, jax.Array]:
        """A layer without experts; donates `kv`, and gives them and x [B, T, D]."""
        return self.layer_stages[layer].dense(self.layer_weights[layer], kv, x, *where)

    def next_router(self, layer: int, h: jax.Array) -> jax.Array:
        """Speculative loading (2312.17238): what `layer`'s router would choose on the residual stream `h`
        of the layer before; router probabilities float32 [B, T, E]."""
        return self.layer_stages[layer].route(self.layer_weights[layer], h)[-1]

    def empty_output(self, tokens: int, top_k: int) -> jax.Array:
        """Zeroed expert outputs [N * K + 1, D]; the last row takes the padding."""
        return self._zeros(tokens * top_k + 1)

    def run_experts(
        self,
        out: jax.Array,
        y: jax.Array,
        rows: np.ndarray,
        buffers: Sequence[experts.Parts | PooledExpert],
        named: tuple[jax.Array, Sequence[int]] | None = None,
    ) -> jax.Array:
        """Adds the outputs of n experts to `out` (donated).

        Args:
          y: [B, T, D].
          rows: int32 [n, C].
          buffers: of each, as the engine gives them.
          named: the choices on the device, int32 [B, T, K], and the experts' numbers, where `rows` are theirs among
            them: with one token of each sequence, a pool's kernel reads these instead and nothing is uploaded.
        """
        first = buffers[0]
        if not isinstance(first, PooledExpert):
            return self._run(out, y, rows, *buffers)
        if named is not None and y.shape[1] == 1 and y.shape[0] <= rows.shape[1]:
            nothing = len(rows) - len(buffers)
            tiles = self._on_device([*named[1], *[NO_EXPERT] * nothing])
            slots_n: list[Any] = [slot for _, slot in buffers]
            pooled = self._on_device(slots_n + [-1] * nothing)
            return first.memory.read(self._run_named, out, y, named[0], tiles, pooled, rows.shape[1])
        slots = np.full((len(rows), 1), -1, np.int32)
        slots[: len(buffers), 0] = [slot for _, slot in buffers]
        return first.memory.read(self._run_tiles, out, y, np.concatenate([slots, rows], axis=1))

    def _on_device(self, numbers: Sequence[int]) -> list[jax.Array]:
        for number in numbers:
            if number not in self._numbers:
                self._numbers[number] = jax.device_put(np.int32(number), self._memory)
        return [self._numbers[number] for number in numbers]

    def selects(self, tokens: int) -> bool:
        """Whether a decode step of N tokens may run as `decode_step`, which is made of the CPU's programs."""
        sizes = len(self.moe_layers), self.config.text.num_experts
        return self.form == IN_PLACE and can_select(self.layout, *sizes, tokens)

    def decode_step(self, experts_LxE: Any, kv: Any, x: jax.Array, *where: Any) -> tuple[Any, ...]:
        """All layers in one call, where all experts are there; donates `kv`. See `selection.whole_step`."""
        return self._whole(self.layer_weights, experts_LxE, kv, x, *where)

    def combined(self, x: jax.Array | Uncombined) -> jax.Array:
        """Residual h [B, T, D] plus expert outputs, weighted, in the order of K: [B, T, D]."""
        return self._combine(*x) if isinstance(x, Uncombined) else x

    def add_deepstack(self, x: jax.Array, visual: jax.Array, index: np.ndarray) -> jax.Array:
        """Adds DeepStack features at image positions."""
        return self._deepstack(self.trunk_weights, x, visual, index)

    def head(self, x: jax.Array) -> jax.Array:
        """Final norm and output projection: float32 [..., V]."""
        return self._head(self.trunk_weights, x)

    def precompile(
        self,
        batch: int,
        lengths: Iterable[int],
        most_rows: int | None = None,
        memory: SlotMemory | None = None,
        as_chosen: bool = True,
    ) -> None:
        """Compiles every group of experts that a step may run: which ones it does run depends on the routing and on
        when experts arrive, so that no number of warm-up runs meets them all. The other stages are the same in every
        step of a shape.

        Args:
          batch: B.
          lengths: T of the steps, as `batching.bucket` rounds them; 1 for decoding.
          most_rows: of one expert, where it is known; None: all B * T tokens.
          memory: of the engine's slots; nothing is compiled without it where experts lie in a pool, of that size alone.
          as_chosen: the experts that run are those of the routers, see `run_experts`.
        """
        text, form, slots = self.config.text, self.form, 0
        expert: experts.Parts | PooledExpert | None = None
        if isinstance(memory, PooledArrays):
            slots = len(memory.buffers)
            expert = memory.buffers[0] if memory.nbytes else None
        elif memory is not None:
            form = form.separate
        missing = [(batch, length, slots) for length in lengths if (batch, length, slots) not in self._compiled]
        if not missing or (form.pooled and expert is None):
            return
        # Put there by `device_put`, as slots are: what jnp makes counts as something else to the jit cache.
        expert = expert or tuple(
            jax.device_put(np.zeros(shape, self.layout.dtype), self._memory) for shape in self.layout.part_shapes
        )
        for _, length, _ in missing:
            tokens, top_k = batch * length, text.num_experts_per_tok
            y = jax.device_put(np.zeros((batch, length, text.hidden_size), self.dtype), self._memory)  # [B, T, D]
            ids = jax.device_put(np.zeros((batch, length, top_k), np.int32), self._memory)
            out = self.empty_output(tokens, top_k)  # [N * K + 1, D]
            for size, padding in group_shapes(tokens, top_k, text.num_experts, most_rows, form):
                rows = np.full((size, padding), tokens * top_k, np.int32)  # [n, C]
                out = self.run_experts(out, y, rows, [expert] * size, (ids, [0] * size) if as_chosen else None)
        if most_rows is None:
            self._compiled.update(missing)

    def group_compilations(self) -> int:
        """How many of the executables are groups of experts."""
        runs: list[Any] = [self._run, self._run_tiles, self._run_named]  # the counter is not in the declared type
        return sum(run._cache_size() for run in runs)

    def compilations(self) -> int:
        """How many executables exist; bounded because lengths, batches and rows are bucketed."""
        jitted = (
            self._vision,
            self._embed,
            self._head,
            self._deepstack,
            self._run,
            self._run_tiles,
            self._run_named,
            self._whole,
            self._combine,
        )
        layers = (stage for s in self._structures for stage in (s.attend, s.dense, s.route))
        cached: list[Any] = [*jitted, *layers]  # the counter is not in the declared type
        return sum(f._cache_size() for f in cached)


def _given(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return arrays
