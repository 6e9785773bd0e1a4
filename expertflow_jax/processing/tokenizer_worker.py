"""Runs a tokenizer whose file brings regular expressions of its own, in a process apart (see `apart_main`)."""

from typing import Any

from tokenizers import AddedToken, Tokenizer

MEMORY = 1 << 30  # bytes
SECONDS = 5  # of processor time for one text, which takes milliseconds; the first one waits for the file
_loaded: dict[str, Tokenizer] = {}  # by file and what was added to it


def without_training_settings(tokenizer: Tokenizer) -> None:
    """Truncation, padding and dropout, which a file may carry from training, never apply to a prompt."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None


def answer(file: str, tokens: list[dict[str, Any]], split: bool, call: str, *arguments: Any) -> Any:
    """The ids of a text ("encode", text, add_special_tokens), or the text of ids ("decode", ids, skip_special_tokens).

    Args:
      file: tokenizer.json.
      tokens: added to it, as keywords of `AddedToken`.
      split: special tokens in a text are text.
    """
    key = repr((file, tokens, split))
    if key not in _loaded:
        _loaded.clear()
        tokenizer = Tokenizer.from_file(file)
        without_training_settings(tokenizer)
        tokenizer.add_tokens([AddedToken(**token) for token in tokens])
        tokenizer.encode_special_tokens = split
        _loaded[key] = tokenizer
    if call == "encode":
        text, special = arguments
        return _loaded[key].encode(text, add_special_tokens=special).ids
    ids, skip = arguments
    return _loaded[key].decode(ids, skip_special_tokens=skip)
