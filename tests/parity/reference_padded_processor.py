"""The reference side of Aria's preprocessing: what transformers' AriaProcessor makes of conversations and images.

Runs in the reference environment, with the image processor that needs no torchvision.

    reference_padded_processor.py OUT STRIDE   writes processor files, images, conversations.json and reference.npz

conversations.json: as `reference_processor.py` writes it, with the settings of preprocessor_config.json that each
wants. Arrays, named "number/array": input_ids [T], pixel_values (every STRIDE-th number of [n, 3, S, S]), seen int
[n, 2] (rows and columns of pixels that are not padding).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from reference_processor import conversations, small_tokenizer, write_images
from transformers.models.aria.image_processing_pil_aria import AriaImageProcessorPil
from transformers.models.aria.processing_aria import AriaProcessor

IMAGE, BEFORE, AFTER = "<|img|>", "<fim_prefix>", "<fim_suffix>"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", BEFORE, IMAGE, AFTER]
TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role + '\\n' }}
{%- if message.content is string -%}
    {{- message.content -}}
{%- else -%}
    {%- for item in message.content -%}
        {%- if item.type == 'image' -%}
            <fim_prefix><|img|><fim_suffix>
        {%- elif item.type == 'text' -%}
            {{- item.text -}}
        {%- endif -%}
    {%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
PATCH = 70
TOKENS = {490: 3, 980: 5}
SETTINGS = [
    {"max_image_size": 490, "split_image": False},
    {"max_image_size": 490, "split_image": True, "min_image_size": 100, "image_std": [0.5, 0.3, 0.2]},
    {"max_image_size": 980, "split_image": False, "image_mean": [0.5, 0.4, 0.3], "resample": 2},
    {"max_image_size": 980, "split_image": True},
]


def asked(files: list[str]) -> list[dict]:
    """All conversations with one setting; with the others a few. AriaProcessor counts the crops of several images as
    those of the one that has most, so that of split images there is one each."""
    alone = [each for each in conversations(files) if len(each["images"]) == 1]
    chosen = [conversations(files), alone[::2], conversations(files)[-3:], alone[1::5]]
    return [each | {"settings": one} for one, some in zip(SETTINGS, chosen, strict=True) for each in some]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("stride", type=int)
    arguments = parser.parse_args()
    out = arguments.out
    said, arrays = asked(write_images(out / "images")), {}
    fast = small_tokenizer(SPECIAL, chat_template=TEMPLATE, image_token=IMAGE)
    for number, each in enumerate(said):
        images = AriaImageProcessorPil(**each["settings"])
        processor = AriaProcessor(images, fast, chat_template=TEMPLATE, size_conversion=TOKENS)
        each["prompt"] = processor.apply_chat_template(each["messages"], tokenize=False, add_generation_prompt=True)
        paths = [str(out / "images" / file) for file in each["images"]]
        given = paths if each["handed"] == "path" else [Image.open(path) for path in paths]
        # Said again: the processor has defaults of its own for these, whatever its image processor's are.
        again = {key: each["settings"][key] for key in ("max_image_size", "split_image")} if given else {}
        made = processor(text=[each["prompt"]], images=given or None, return_tensors="np", **again)
        arrays[f"{number}/input_ids"] = made["input_ids"][0]
        if given:
            arrays[f"{number}/pixel_values"] = made["pixel_values"].reshape(-1)[:: arguments.stride]
            mask = made["pixel_mask"]
            arrays[f"{number}/seen"] = np.stack([mask[:, :, 0].sum(axis=1), mask[:, 0].sum(axis=1)], axis=1)
    fast.save_pretrained(out)
    AriaImageProcessorPil().save_pretrained(out)
    (out / "processor_config.json").write_text(json.dumps({"size_conversion": TOKENS}) + "\n")
    config = {"model_type": "aria", "image_token_index": fast.convert_tokens_to_ids(IMAGE)}
    (out / "config.json").write_text(json.dumps(config | {"vision_config": {"patch_size": PATCH}}) + "\n")
    (out / "conversations.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n")
    np.savez_compressed(out / "reference.npz", **arrays)


if __name__ == "__main__":
    main()
