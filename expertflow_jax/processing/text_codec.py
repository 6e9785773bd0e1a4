"""Text to token ids and back, in bounded time and memory: a tokenizer.json may bring regular expressions of its own,
which take exponential time on some texts, or steps that make a text a million times as long.

The steps of published models are known and run in this process. With any other the whole tokenizer runs in a process
apart, under limits of memory and time; ids and texts are the same.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from expertflow_jax.checkpoints.files import read_json
from expertflow_jax.errors import InputError
from expertflow_jax.processing.apart import Apart, Refusal
from expertflow_jax.processing.tokenizer_worker import MEMORY, SECONDS, without_training_settings

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
FILE_BYTES = 256 << 20  # of tokenizer.json; the largest that are published have 40 MB
_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
FAMILIAR = frozenset(
    {
        rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+",  # GPT-2
        *(  # Llama 3, Qwen 2 and 3
            rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
            for digits in (r"\p{N}{1,3}", r"\p{N}")
        ),
        r"\p{N}{1,3}",  # DeepSeek, with further steps
        r"\d",
        r" {2,}",
        r"[\r\n]",
        r"\s+",
    }
)
HARMLESS = frozenset(  # steps that take linear time and leave a text about as long
    [
        *("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "StripAccents", "BertNormalizer", "Nmt"),
        *("ByteLevel", "Metaspace", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Digits", "Punctuation"),
        *("UnicodeScripts", "CharDelimiterSplit", "ByteFallback", "Fuse", "WordPiece", "BPEDecoder", "CTC"),
    ]
)
MOST_STEPS = 10  # at most double the text each
TOKENIZERS = Apart("tokenizer_worker.py", MEMORY, SECONDS)


class TextCodec:
    """The tokenizer of one tokenizer.json.

    Attributes:
      vocabulary: knows tokens and ids; it reads no text where the steps are not familiar.
      pad_token: of the file's padding, None without.
    """

    def __init__(self, file: Path):
        """Raises InputError if the file is damaged."""
        self._file = file
        values = read_json(file, FILE_BYTES)
        self._apart = not all(_is_familiar(values.get(key)) for key in ("normalizer", "pre_tokenizer", "decoder"))
        if self._apart:
            values |= {"normalizer": None, "pre_tokenizer": None, "decoder": None}
        try:
            self.vocabulary = Tokenizer.from_str(json.dumps(values)) if self._apart else Tokenizer.from_file(str(file))
        except BaseException as error:
            raise _as_input_error(error, f"{file}: damaged (%s); download it again") from error
        padding = self.vocabulary.padding
        self.pad_token: str | None = None if padding is None else padding["pad_token"]
        without_training_settings(self.vocabulary)
        self._added: list[dict[str, Any]] = []

    def add(self, tokens: Sequence[AddedToken], split: bool) -> None:
        """Adds tokens of other files. Args: split: special tokens in a text are text."""
        self._added = [{"content": token.content} | {flag: getattr(token, flag) for flag in FLAGS} for token in tokens]
        self.vocabulary.add_tokens(list(tokens))
        self.vocabulary.encode_special_tokens = split

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids; raises InputError if the tokenizer cannot read the text, or needs too long."""
        if self._apart:
            return self._ask("encode", text, add_special_tokens)
        try:
            return self.vocabulary.encode(text, add_special_tokens=add_special_tokens).ids
        except BaseException as error:
            raise _as_input_error(error, f"{self._file}: the tokenizer cannot read the text (%s)") from error

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Text of token ids."""
        if self._apart:
            return self._ask("decode", list(ids), skip_special_tokens)
        return self.vocabulary.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def _ask(self, *request: Any) -> Any:
        try:
            return TOKENIZERS.ask(
                str(self._file.absolute()), self._added, self.vocabulary.encode_special_tokens, *request
            )
        except Refusal as error:
            raise InputError(
                f"{self._file}: the tokenizer, whose steps are unusual, cannot read the text ({one_line(error)}); "
                "change either"
            ) from error


def one_line(error: object) -> str:
    """The text of an error that a library or a template raised, short and on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."


def _as_input_error(error: BaseException, message: str) -> BaseException:
    """The library raises plain Exception, and what is no Exception where it panics."""
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return InputError(message % one_line(error))
    return error


def _is_familiar(step: Any) -> bool:
    """Whether a normalizer, pre-tokenizer or decoder, or all of a sequence, is harmless on any text."""
    steps, count = [step] if step is not None else [], 0
    while steps:
        step, count = steps.pop(), count + 1
        if not isinstance(step, dict) or count > MOST_STEPS:
            return False
        if step.get("type") == "Sequence":
            parts = [step.get(key) for key in ("normalizers", "pretokenizers", "decoders") if key in step]
            if len(parts) != 1 or not isinstance(parts[0], list):
                return False
            steps += parts[0]
        elif step.get("type") in ("Replace", "Split", "Prepend"):
            if not _is_familiar_pattern(step.get("pattern"), step.get("content", step.get("prepend", ""))):
                return False
        elif step.get("type") not in HARMLESS:
            return False
    return True


def _is_familiar_pattern(pattern: Any, content: Any) -> bool:
    """Whether matches are found soon, and what stands in their place is not longer."""
    text = pattern.get("String") if isinstance(pattern, dict) else None
    known = isinstance(pattern, dict) and pattern.get("Regex") in FAMILIAR
    longest = len(text) if isinstance(text, str) else 1 if known or pattern is None else -1
    return isinstance(content, str) and text != "" and len(content) <= longest
