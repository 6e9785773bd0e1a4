"""The reference side of preprocessing: what transformers' Qwen3VLProcessor makes of conversations and images.

Runs in the reference environment.

    reference_processor.py OUT         writes processor files, images, conversations.json and reference.npz to OUT
    reference_processor.py OUT MODEL   the same with the tokenizer, template and image settings of a checkpoint MODEL

conversations.json: messages, files of the images, how they are handed over ("path" or "pixels"), and the prompt text.
Arrays, named "number/array": input_ids [T], pixel_values [P, patch_dim], image_grid_thw [images, 3].
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

PAD, START, END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", START, END, PAD, "<|video_pad|>"]
CORPUS = [
    "How many green cubes are there? There are two.",
    "Which digit is left of the red one?",
    "größer, naïve, 数字",
]
# Every device of the family's template: namespaces, tests, whitespace control, tojson, refusals, generation prompts.
TEMPLATE = """{%- if tools %}
    {{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}
{%- endif %}
{%- set seen = namespace(images=0) %}
{%- for message in messages %}
    {%- if message.role not in ('system', 'user', 'assistant') %}
        {{- raise_exception('no such role: ' + message.role) }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for item in message.content %}
            {%- if item.type == 'skip' %}{%- continue %}{%- endif %}
            {%- if item.type == 'image' or 'image' in item %}
                {%- set seen.images = seen.images + 1 %}
                {%- if add_vision_id %}Picture {{ seen.images }}: {% endif -%}
                <|vision_start|><|image_pad|><|vision_end|>
            {%- elif 'text' in item %}
                {{- item.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
IMAGE_SETTINGS = {
    "patch_size": 4,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 16 * 16, "longest_edge": 32 * 32},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.3, 0.2],
}


class ImageProcessorOnly(Qwen3VLProcessor):
    """Without the video processor, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        return type(argument)


def small_tokenizer(special: list[str], **settings: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", **settings
    )


def small_processor() -> Qwen3VLProcessor:
    fast = small_tokenizer(SPECIAL, chat_template=TEMPLATE)
    return ImageProcessorOnly(Qwen2VLImageProcessorPil(**IMAGE_SETTINGS), fast, None, chat_template=TEMPLATE)


def stored_processor(model: Path) -> Qwen3VLProcessor:
    tokenizer = AutoTokenizer.from_pretrained(model)
    images = Qwen2VLImageProcessorPil.from_pretrained(model)
    return ImageProcessorOnly(images, tokenizer, None, chat_template=tokenizer.chat_template)


def write_images(directory: Path) -> list[str]:
    """Images that want growing, shrinking or neither, in several modes, one of them lying on its side."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)

    def noise(high: int, wide: int, channels: int) -> np.ndarray:
        coarse = rng.integers(0, 256, (high // 4 + 1, wide // 4 + 1, channels), np.uint8)
        return coarse.repeat(4, axis=0).repeat(4, axis=1)[:high, :wide]

    fitting = Image.fromarray(noise(16, 24, 3))
    colours = Image.fromarray(noise(20, 20, 3)).quantize(8)
    sideways = Image.Exif()
    sideways[0x0112] = 6
    made = {
        "fitting.png": (fitting, {}),
        "small.png": (Image.fromarray(noise(7, 9, 3)), {}),
        "large.png": (Image.fromarray(noise(61, 47, 3)), {}),
        "narrow.png": (Image.fromarray(noise(5, 90, 3)), {}),
        "grey.png": (Image.fromarray(noise(21, 18, 1)[..., 0]), {}),
        "alpha.png": (Image.fromarray(noise(19, 26, 4)), {}),
        "palette.png": (colours, {"transparency": 3}),
        "sideways.jpg": (Image.fromarray(noise(17, 33, 3)), {"exif": sideways, "quality": 90}),
    }
    for name, (image, options) in made.items():
        image.save(directory / name, **options)
    return sorted(made)


def conversations(files: list[str]) -> list[dict]:
    def asked(*images: str, handed: str) -> dict:
        items = [{"type": "text", "text": "Which digit is left?"}, *[{"type": "image"} for _ in images]]
        return {"messages": [{"role": "user", "content": items}], "images": list(images), "handed": handed}

    made = [asked(file, handed=handed) for handed in ("path", "pixels") for file in files]
    made.append(asked(*files[:3], handed="pixels"))
    image, text = {"type": "image"}, {"type": "text", "text": "  zwei größer als 1? <b>\n"}
    talk = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": [image, text, {"type": "skip"}, image]},
        {"role": "assistant", "content": "数字 two."},
        {"role": "user", "content": "Which digit is left of the red one?"},
    ]
    made.append({"messages": talk, "images": files[-2:], "handed": "pixels"})
    made.append({"messages": talk[-1:], "images": [], "handed": "path"})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path, nargs="?")
    arguments = parser.parse_args()
    out, stored = arguments.out, arguments.model is not None
    processor = stored_processor(arguments.model) if stored else small_processor()
    said = conversations(write_images(out / "images"))
    arrays = {}
    for number, each in enumerate(said):
        if stored:  # not every template knows every kind of message
            each["messages"] = [m for m in each["messages"] if m["role"] == "user"]
            for message in (m for m in each["messages"] if not isinstance(m["content"], str)):
                message["content"] = [item for item in message["content"] if item["type"] != "skip"]
        each["prompt"] = processor.apply_chat_template(each["messages"], tokenize=False, add_generation_prompt=True)
        paths = [str(out / "images" / file) for file in each["images"]]
        images = paths if each["handed"] == "path" else [Image.open(path) for path in paths]
        made = processor(text=[each["prompt"]], images=images or None, return_tensors="np")
        for name in ("input_ids", "pixel_values", "image_grid_thw"):
            if name in made:
                arrays[f"{number}/{name}"] = made[name][0] if name == "input_ids" else made[name]
    if not stored:
        processor.tokenizer.save_pretrained(out)
        processor.image_processor.save_pretrained(out)
        image_token = processor.tokenizer.convert_tokens_to_ids(PAD)
        (out / "config.json").write_text(json.dumps({"image_token_id": image_token}) + "\n")
    (out / "conversations.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n")
    np.savez_compressed(out / "reference.npz", **arrays)


if __name__ == "__main__":
    main()
