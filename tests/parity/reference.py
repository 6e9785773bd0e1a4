"""The reference side: runs Hugging Face's models and hands over files.

Runs in an environment of its own (see make_reference_env.sh), never beside the package.

    reference.py make OUT CASE...          a random model per case, with OUT/CASE/reference.npz beside it
    reference.py run MODEL IN.npz OUT.npz  loads a checkpoint that someone else wrote, runs the batches of IN
    reference.py goldens OUT               the committed part: GOLDENS, in OUT (tests/goldens)

Arrays of each batch, named "batch/array", all padded right: input_ids [B, T], lengths [B], pixel_values with
image_grid_thw or (Aria) pixel_mask (empty without images), positions [3, B, T], next_position [B], logits [B, T, V],
router_logits [B, L, T, E], expert_ids [B, L, T, K]; and of greedy decoding with a cache over G steps: tokens [B, G],
step_logits [B, G, V], step_expert_ids [B, L, G - 1, K].

An encoder-decoder's batches have encoder_lengths [B] too: input_ids are the prompt, then START_TOKENS tokens of the
decoder (the start token first), lengths count both, L the encoder's MoE layers, then the decoder's. Where a token does
not go through a layer, or is dropped, its expert is -1; logits of the encoder's tokens are 0.
"""

import argparse
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

sys.path.insert(0, str(Path(__file__).parent))
from reference_cases import BATCHES, CASES, GOLDENS, batches_of, prompts

STEPS = 16
START_TOKENS = 4
SETTINGS = {"dtype": torch.float32, "attn_implementation": "eager", "experts_implementation": "eager"}


def model_class(config: Any) -> Any:
    """The class that has the family's head."""
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM._model_mapping[type(config)]
    auto = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    return auto._model_mapping[type(config)]


def random_model(case: str) -> torch.nn.Module:
    """Weights that leave nothing trivial: biases are not 0, norms not 1, routers decided, logits apart."""
    config = AutoConfig.for_model(**CASES[case])
    model = model_class(config)._from_config(config, **SETTINGS).eval()
    generator = torch.Generator().manual_seed(zlib.crc32(case.encode()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.3 * noise + (0.0 if name.endswith("bias") else 1.0))
            elif name == "shared.weight" or ("embed" in name and "proj" not in name and "patch" not in name):
                parameter.copy_(noise)
            else:
                scale = (
                    2.0
                    if any(part in name for part in ("gate.weight", "router.weight", "lm_head", "classifier"))
                    else 1.0
                )
                parameter.copy_(scale * noise / parameter[0].numel() ** 0.5)
    return model


class Routes:
    """Records what every router of the model says, call by call: logits [B, T, E] and chosen experts [B, T, K]."""

    def __init__(self, model: torch.nn.Module):
        self.batch = 1
        self.logits: list[list[np.ndarray]] = []
        self.experts: list[list[np.ndarray]] = []
        gates = [module for module in model.modules() if type(module).__name__.endswith(("TopKRouter", "Top1Router"))]
        for number, gate in enumerate(gates):
            self.logits.append([])
            self.experts.append([])
            gate.register_forward_hook(lambda *call, number=number: self._record(number, call[2]))

    def _record(self, number: int, output: tuple[torch.Tensor, ...]) -> None:
        logits, _, experts = output if output[2].dtype == torch.int64 else _top_1(output)
        self.logits[number].append(logits.reshape(self.batch, -1, logits.shape[-1]).numpy().copy())
        self.experts[number].append(experts.reshape(self.batch, -1, experts.shape[-1]).numpy().copy())

    def take(self, skip: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """All calls since the last take but the first `skip`, along T: [B, L, T, E] and [B, L, T, K]."""
        found = [
            np.stack([np.concatenate(calls[skip:], axis=1) for calls in each], 1)
            for each in (self.logits, self.experts)
        ]
        self.clear()
        return found[0], found[1]

    def clear(self) -> None:
        for calls in self.logits + self.experts:
            calls.clear()


def _top_1(output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """What the router of Switch Transformers says, in the words of the others; -1 for tokens that it drops."""
    chosen, weights, logits = output
    return logits, weights, torch.where(chosen.any(-1), chosen.argmax(-1), -1)[..., None]


@torch.no_grad()
def run_stacks(model: torch.nn.Module, routes: Routes, ids: list[np.ndarray]) -> dict[str, np.ndarray]:
    """One batch of an encoder-decoder, padded right; the decoder reads the start token and the prompt's first ones."""
    encoded = np.array([len(i) for i in ids])
    size, width, total = len(ids), int(encoded.max()), int(encoded.max()) + START_TOKENS
    routes.batch = size
    padded = np.zeros((size, width), np.int64)
    for row, tokens in enumerate(ids):
        padded[row, : len(tokens)] = tokens
    began = np.array([np.resize(i, START_TOKENS) for i in ids])
    began[:, 0] = model.config.decoder_start_token_id
    inputs = {
        "input_ids": torch.tensor(padded),
        "attention_mask": torch.tensor((np.arange(width) < encoded[:, None]).astype(np.int64)),
        "decoder_input_ids": torch.tensor(began),
    }
    logits = model(**inputs, use_cache=False).logits.numpy()
    encoder_layers = sum(name.startswith("encoder") and name.endswith("router") for name, _ in model.named_modules())
    found = [[np.concatenate(calls, axis=1) for calls in each] for each in (routes.logits, routes.experts)]
    routes.clear()
    answer = model.generate(
        **inputs,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        do_sample=False,
        use_cache=True,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    nowhere = [np.full((size, 1, 1), -1)] * (STEPS - 1)
    steps = [nowhere] * encoder_layers + [calls[1:] for calls in routes.experts[encoder_layers:]]
    routes.clear()

    def joined(encoder: list[np.ndarray], decoder: list[np.ndarray], empty: float) -> np.ndarray:
        """Layers of [B, T, n] of either stack as [B, L, T, n] on tokens of both."""
        last = (encoder or decoder)[0].shape[-1]
        out = np.full((size, len(encoder) + len(decoder), total, last), empty, np.float32)
        for row, length in enumerate(encoded):
            for layer, part in enumerate(encoder):
                out[row, layer, :length] = part[row, :length]
            for layer, part in enumerate(decoder, start=len(encoder)):
                out[row, layer, length : length + START_TOKENS] = part[row]
        return out

    both = [np.concatenate([row[:n], start]) for row, n, start in zip(padded, encoded, began, strict=True)]
    stacks = [(each[:encoder_layers], each[encoder_layers:]) for each in found]
    return {
        "input_ids": np.stack([np.pad(row, (0, total - len(row))) for row in both]),
        "lengths": encoded + START_TOKENS,
        "encoder_lengths": encoded,
        "logits": joined([], [logits], 0)[:, 0],
        "router_logits": joined(*stacks[0], 0),
        "expert_ids": joined(*stacks[1], -1).astype(np.int16),
        "tokens": answer.sequences[:, START_TOKENS:].numpy(),
        "step_logits": torch.stack(answer.logits, dim=1).numpy(),
        "step_expert_ids": np.stack([np.concatenate(calls, axis=1) for calls in steps], 1).astype(np.int16),
    }


@torch.no_grad()
def run_batch(
    model: torch.nn.Module,
    routes: Routes,
    ids: list[np.ndarray],
    images: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """One batch, padded left as transformers' generation wants it; the arrays come back padded right."""
    if model.config.is_encoder_decoder:
        return run_stacks(model, routes, ids)
    lengths = np.array([len(i) for i in ids])
    size, width = len(ids), int(lengths.max())
    routes.batch = size
    padded = np.zeros((size, width), np.int64)
    mask = np.zeros((size, width), np.int64)
    for row, tokens in enumerate(ids):
        padded[row, width - len(tokens) :] = tokens
        mask[row, width - len(tokens) :] = 1
    inputs = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
    if len(images["pixel_values"]):
        inputs |= {name: torch.tensor(array) for name, array in images.items()}
    if hasattr(model.model, "get_rope_index"):
        kinds = torch.tensor((padded == model.config.image_token_id).astype(np.int64))
        inputs["mm_token_type_ids"] = kinds
        positions, delta = model.model.get_rope_index(
            inputs["input_ids"], kinds, inputs.get("image_grid_thw"), None, inputs["attention_mask"]
        )
        prefill = model(**inputs, position_ids=positions, use_cache=False)
        next_position = lengths + delta.numpy()[:, 0]
    else:
        plain = torch.tensor(np.maximum(mask.cumsum(axis=1) - 1, 0))
        prefill = model(**inputs, position_ids=plain, use_cache=False)
        positions, next_position = plain.expand(3, -1, -1), lengths
    router_logits, experts = routes.take()
    answer = model.generate(
        **inputs,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    _, step_experts = routes.take(skip=1)

    def right(array: np.ndarray, axis: int) -> np.ndarray:
        """From left to right padding: sequences first, tokens on `axis`."""
        rows = np.moveaxis(array, axis, 1) if axis > 1 else array
        out = np.zeros_like(rows)
        for row, length in enumerate(lengths):
            out[row, :length] = rows[row, width - length :]
        return np.moveaxis(out, 1, axis) if axis > 1 else out

    return {
        "input_ids": right(padded, 1),
        "lengths": lengths,
        **images,
        "positions": np.stack([right(part, 1) for part in positions.numpy()]),
        "next_position": next_position,
        "logits": right(prefill.logits.numpy(), 1),
        "router_logits": right(router_logits, 2),
        "expert_ids": right(experts, 2).astype(np.int16),
        "tokens": answer.sequences[:, width:].numpy(),
        "step_logits": torch.stack(answer.logits, dim=1).numpy(),
        "step_expert_ids": step_experts.astype(np.int16),
    }


def make(out: Path, cases: dict[str, list[str]]) -> None:
    """Models of the named cases, each run on the named batches."""
    for case, batches in cases.items():
        model = random_model(case)
        routes = Routes(model)
        arrays = {}
        for batch in batches:
            found = run_batch(model, routes, *prompts(CASES[case], batch, seed=list(BATCHES).index(batch)))
            arrays |= {f"{batch}/{name}": array for name, array in found.items()}
        (out / case).mkdir(parents=True, exist_ok=True)
        model.save_pretrained(out / case)
        np.savez_compressed(out / case / "reference.npz", **arrays)


def run(checkpoint: Path, source: Path, out: Path) -> None:
    """Exits with a message when transformers misses a tensor of the checkpoint or does not expect one."""
    found_class = model_class(AutoConfig.from_pretrained(checkpoint))
    model, info = found_class.from_pretrained(checkpoint, output_loading_info=True, **SETTINGS)
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if wrong:
        sys.exit(f"{checkpoint}: {wrong}")
    given = np.load(source)
    routes = Routes(model.eval())
    arrays = {}
    for batch in sorted({name.split("/")[0] for name in given.files}):
        ids, lengths = given[f"{batch}/input_ids"].astype(np.int64), given[f"{batch}/lengths"]
        if model.config.is_encoder_decoder:
            lengths = given[f"{batch}/encoder_lengths"]
        rows = [row[:length] for row, length in zip(ids, lengths, strict=True)]
        names = ("pixel_values", "image_grid_thw", "pixel_mask")
        images = {name: given[f"{batch}/{name}"] for name in names if f"{batch}/{name}" in given.files}
        found = run_batch(model, routes, rows, images)
        arrays |= {f"{batch}/{name}": array for name, array in found.items()}
    np.savez_compressed(out, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    making = commands.add_parser("make")
    making.add_argument("out", type=Path)
    making.add_argument("case", nargs="+", choices=sorted(CASES))
    commands.add_parser("goldens").add_argument("out", type=Path)
    running = commands.add_parser("run")
    for name in ("checkpoint", "source", "out"):
        running.add_argument(name, type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command == "make":
        make(arguments.out, {case: batches_of(case) for case in arguments.case})
    elif arguments.command == "goldens":
        make(arguments.out, GOLDENS)
    else:
        run(arguments.checkpoint, arguments.source, arguments.out)


if __name__ == "__main__":
    main()
