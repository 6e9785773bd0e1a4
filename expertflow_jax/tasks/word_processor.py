"""A small model's processor, in the files that any Hugging Face checkpoint directory has.

A word-level tokenizer over a benchmark's closed vocabulary; the long fixed phrases of the official prompts are single
tokens. The image processor and chat template are Qwen3-VL's at a small model's sizes.
"""

import dataclasses
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from expertflow_jax.files import make_folder, write_atomically, write_json

IM_START, IM_END, END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD, UNKNOWN = "<|image_pad|>", "<|video_pad|>", "<|unknown|>"
SPECIAL = (END, IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD, UNKNOWN)
SHORT_ANSWER_PHRASE = "Answer the question using a single word or phrase."

PATCH, MERGE = 8, 2
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '" + IM_START + "' if message.role == 'user' else '' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for item in message.content -%}"
    "{{ '" + VISION_START + IMAGE_PAD + VISION_END + "' if item.type == 'image' else item.text }}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '" + IM_END + "' if message.role == 'user' else '" + END + "' }}"
    "{%- endfor -%}"
)


def prompt_of(text: str, image_tokens: int) -> str:
    """The chat-templated prompt with its image placeholder expanded, as `Processor` makes it."""
    image = VISION_START + IMAGE_PAD * image_tokens + VISION_END
    return IM_START + text + image + IM_END


@dataclasses.dataclass(frozen=True)
class WordProcessor:
    """The processor of one benchmark's words.

    Attributes:
      words: one token each.
      phrases: one token each, wherever they stand.
      last_words: words whose full mark is dropped with the question marks: neither carries anything here.
    """

    words: tuple[str, ...]
    phrases: tuple[str, ...]
    last_words: tuple[str, ...] = ()

    def build_tokenizer(self) -> Tokenizer:
        """One token per word."""
        vocabulary = {token: i for i, token in enumerate((*SPECIAL, *self.phrases, *dict.fromkeys(self.words)))}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
        tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in self.phrases])
        marks = [normalizers.Replace(f"{word}.", word) for word in self.last_words]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("?", ""), *marks])
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return tokenizer

    def vocab_size(self) -> int:
        """Tokens in the vocabulary, rounded up to a multiple of 8 (embedding rows)."""
        return -(-self.build_tokenizer().get_vocab_size() // 8) * 8

    def write(self, directory: Path) -> None:
        """Writes tokenizer, chat template, image processor and generation settings into a checkpoint directory."""
        make_folder(directory)
        tokenizer = self.build_tokenizer()
        write_atomically(directory / "tokenizer.json", tokenizer.to_str(pretty=True))
        write_atomically(directory / "chat_template.jinja", CHAT_TEMPLATE)
        write_json(
            directory / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": END,
                "pad_token": END,
                "unk_token": UNKNOWN,
                "clean_up_tokenization_spaces": False,
                "model_max_length": 512,
            },
        )
        write_json(
            directory / "preprocessor_config.json",
            {
                "image_processor_type": "Qwen2VLImageProcessorFast",
                "do_convert_rgb": True,
                "do_normalize": True,
                "do_rescale": True,
                "do_resize": True,
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.5, 0.5, 0.5],
                "rescale_factor": 1 / 255,
                "merge_size": MERGE,
                "patch_size": PATCH,
                "temporal_patch_size": 1,
                "size": {"shortest_edge": 256, "longest_edge": 65536},
            },
        )
        end = tokenizer.token_to_id(END)
        write_json(directory / "generation_config.json", {"do_sample": False, "eos_token_id": end, "pad_token_id": end})
