"""The stages of full-size models compiled by XLA for NVIDIA cards that are described, not there; no weights either.

The cards' figures are of NVIDIA's data sheets and architecture papers, in the text form of XLA's own
(xla/backends/gpu/target_config/specs). Nothing is autotuned without a card: tile sizes are XLA's guesses, but fusion,
buffers, donation and the number of kernels are what a card of this description would get.
Axes: B sequences, T new tokens, S cache length, K top-k, D model width, n experts of a group, C rows of an expert,
t tiles.
"""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax._src.interpreters import mlir
from jax._src.lib import triton
from jax._src.lib.mlir import ir, passmanager
from jax.experimental import topologies

from expertflow_jax.checkpoints.families import family_of
from expertflow_jax.checkpoints.load import loaded_config
from expertflow_jax.inference.rows import smallest_rows, tile_rows
from expertflow_jax.inference.stages import Stages
from expertflow_jax.offload import slot_memory

SPECS = Path(__file__).parent / "specs"
MODELS = Path(__file__).parents[2] / "configs" / "models"
CARDS = ("h100", "a100", "rtx4090")
ROOM = 1024  # S


@functools.cache
def card(name: str) -> jax.Device:
    """The described card as a device to compile for."""
    text = (SPECS / f"{name}.txtpb").read_text()
    return topologies.get_topology_desc(platform="cuda", target_config=text, topology="1x1x1").devices[0]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled stage: its optimised HLO text and sizes in bytes."""

    text: str
    temporary: int
    aliased: int

    @functools.cached_property
    def computations(self) -> dict[str, str]:
        """Text of each computation by its name; the entry's is called ENTRY."""
        texts = {}
        for entry, name, body in re.findall(r"^(ENTRY )?%?([\w.-]+) [^\n]*\{\n(.*?)^\}", self.text, re.M | re.S):
            texts["ENTRY" if entry else name] = body
        return texts

    @property
    def kernels(self) -> list[str]:
        """The entry's instructions that launch a kernel or a library call."""
        launched = r" (?:fusion|custom-call|copy|sort|scatter|reduce|dot|convolution|copy-start|while|conditional)\("
        return [line.strip() for line in self.computations["ENTRY"].splitlines() if re.search(launched, line)]

    @property
    def moves(self) -> list[str]:
        """What the kernels compute that take rows, or put them in their places."""
        return [body for body in map(self._body, self.kernels) if _moves(body)]

    @property
    def arithmetic(self) -> list[str]:
        """What every other kernel computes, tiles and splits included, without the numbers in names."""
        texts = []
        for kernel in self.kernels:
            body = self._body(kernel)
            if not _moves(body):
                settings = re.search(r"backend_config=(.*)", kernel)
                texts.append(_anonymous(f"{body}\n{settings[1] if settings else ''}"))
        return texts

    @property
    def pallas_kernels(self) -> list[list[str]]:
        """Lines of each Triton kernel, sorted, once constants are folded: those that do not name the grid's size."""
        texts = []
        for escaped in re.findall(r'\bir = "((?:[^"\\]|\\.)*)"', self.text):
            code = re.sub(
                rb"\\([0-9A-F]{2})|\\(.)",
                lambda match: bytes([int(match[1], 16)]) if match[1] else match[2],
                escaped.encode("latin1"),
            )
            with mlir.make_ir_context() as context:
                triton.dialect.register_dialect(context)
                module = ir.Module.parse(code)
                passmanager.PassManager.parse("builtin.module(canonicalize,cse)").run(module.operation)
                texts.append(sorted(str(module).splitlines()))
        return texts

    def _body(self, kernel: str) -> str:
        """The computation that a kernel of `kernels` runs."""
        called = re.search(r"calls=%?([\w.-]+)", kernel)
        return self.computations[called[1]] if called else kernel


def _moves(body: str) -> bool:
    return " gather(" in body or " scatter(" in body


def _anonymous(text: str) -> str:
    names: dict[str, str] = {}
    text = re.sub(r", metadata=\{[^}]*\}", "", text)
    return re.sub(r"%[\w.-]+", lambda match: names.setdefault(match[0], f"%{len(names)}"), text)


def compiled(function: Any, *arguments: Any) -> Program:
    """A jitted function compiled for arguments that are only described."""
    program = function.lower(*arguments).compile()
    memory = program.memory_analysis()
    return Program(program.as_text(), memory.temp_size_in_bytes, memory.alias_size_in_bytes)


class DescribedModel:
    """A model in bfloat16 of which only the shapes exist, on a card of which only the description does."""

    def __init__(self, name: str, card_name: str):
        """Args: name: a folder of configs/models."""
        config = loaded_config(MODELS / name)
        family = family_of(config)
        module = nnx.eval_shape(
            lambda: family.module(config, rngs=nnx.Rngs(0), dtype=jnp.dtype(jnp.bfloat16), with_experts=False)
        )
        self.config, self.text = config, config.text
        self.sharding = jax.sharding.SingleDeviceSharding(card(card_name))
        self.stages = Stages(module, card(card_name), put=lambda array, _: self.like(array))

    def like(self, array: Any) -> jax.ShapeDtypeStruct:
        """A description of an array on the card."""
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=self.sharding)

    def array(self, *shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        """A described array on the card."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.sharding)

    def expert(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The arrays of one expert."""
        return tuple(self.array(*shape) for shape in self.stages.layout.part_shapes)

    def kv(self, batch: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Keys and values of a layer."""
        keys = self.array(batch, ROOM, self.text.num_key_value_heads, self.text.head_dim)
        return keys, keys

    def kv_bytes(self, batch: int) -> int:
        """Bytes of the same."""
        return sum(2 * array.size for array in self.kv(batch))

    def attend(self, batch: int, length: int) -> Program:
        """Attention and router of an MoE layer; where tokens come one by one, behind another's experts."""
        ints = functools.partial(self.array, dtype=jnp.int32)
        where = ints(3, batch, length), ints(batch), ints(batch)
        layer, out = self.stages.moe_layers[0], None
        x: Any = self.array(batch, length, self.text.hidden_size)
        if length == 1:
            shares = self.array(batch, 1, self.text.num_experts_per_tok, dtype=jnp.float32)
            x, out = (x, shares), self.output(batch)
        weights = self.stages.layer_weights[layer]
        return compiled(self.stages.layer_stages[layer].attend, weights, (self.kv(batch), out), x, *where)

    def group(self, size: int, rows: int, tokens: int = 1) -> Program:
        """n experts of C rows each, in a step of N tokens of as many sequences."""
        return compiled(
            self.stages._run,
            self.output(tokens),
            self.array(tokens, 1, self.text.hidden_size),
            self.array(size, rows, dtype=jnp.int32),
            *[self.expert()] * size,
        )

    def tiles(self, count: int, tokens: int = 1, slots: int = 64) -> Program:
        """Experts in a pool of S slots on t tiles of their rows, in a step of N tokens of as many sequences."""
        rows = tile_rows(tokens, self.text.num_experts_per_tok, self.text.num_experts)
        mesh = jax.sharding.Mesh([self.sharding._device], "x")
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # it says which card a Pallas kernel is for
            return compiled(
                self.stages._run_tiles,
                self.output(tokens),
                self.array(tokens, 1, self.text.hidden_size),
                self.array(count, 1 + rows, dtype=jnp.int32),
                *self.pool(slots),
            )

    def named_tiles(self, count: int, tokens: int = 1, slots: int = 64) -> Program:
        """The same, their rows found among the choices on the device."""
        size, number = (
            tile_rows(tokens, self.text.num_experts_per_tok, self.text.num_experts),
            self.array(dtype=jnp.int32),
        )
        mesh = jax.sharding.Mesh([self.sharding._device], "x")
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return compiled(
                self.stages._run_named,
                self.output(tokens),
                self.array(tokens, 1, self.text.hidden_size),
                self.array(tokens, 1, self.text.num_experts_per_tok, dtype=jnp.int32),
                [number] * count,
                [number] * count,
                size,
                *self.pool(slots),
            )

    def commit(self, slots: int = 64) -> Program:
        """An expert that has arrived, copied into a pool of S slots."""
        return compiled(slot_memory._commit, self.pool(slots), self.expert(), self.array(dtype=jnp.int32))

    def pool(self, slots: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The arrays of S experts, [S, ...]."""
        return tuple(self.array(slots, *shape) for shape in self.stages.layout.part_shapes)

    def least_rows(self, tokens: int) -> int:
        """C of an expert with a single row, in a step of N tokens."""
        return smallest_rows(tokens, self.stages.form)

    def output(self, tokens: int) -> jax.ShapeDtypeStruct:
        """Outputs of the experts, [N * K + 1, D]."""
        return self.array(tokens * self.text.num_experts_per_tok + 1, self.text.hidden_size)

    def small_stages(self) -> dict[str, Program]:
        """What runs once per step or between the others, for one sequence: name -> program."""
        stages, text = self.stages, self.text
        x = self.array(1, 1, text.hidden_size)
        weights = self.array(1, 1, text.num_experts_per_tok, dtype=jnp.float32)
        ids = self.array(1, 64, dtype=jnp.int32)
        programs = {
            "combine": compiled(stages._combine, x, self.output(1), weights),
            "route": compiled(
                stages.layer_stages[stages.moe_layers[0]].route, stages.layer_weights[stages.moe_layers[0]], x
            ),
            "head": compiled(stages._head, stages.trunk_weights, x),
            "embed": compiled(stages._embed, stages.trunk_weights, ids, None, None),
            "empty output": compiled(stages._zeros, text.num_experts_per_tok + 1),
        }
        if self.config.vision is not None:
            images = self.array(256, text.hidden_size)
            programs["embed with images"] = compiled(stages._embed, stages.trunk_weights, ids, images, ids)
            long = self.array(1, 64, text.hidden_size)
            programs["deepstack"] = compiled(stages._deepstack, stages.trunk_weights, long, images, ids)
        return programs

    def vision(self, high: int, wide: int) -> Program:
        """The vision tower on one image of so many patches."""
        thw = np.array([[1, high, wide]])
        pixels = np.zeros((high * wide, self.config.vision.patch_dim), np.float32)
        inputs = jax.tree.map(self.like, self.config.vision_inputs(pixels, thw))
        return compiled(self.stages._vision, self.stages.trunk_weights, *inputs)
