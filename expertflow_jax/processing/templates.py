"""The chat template of a checkpoint, and the prompt that it makes of a conversation, as transformers 5 does both."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expertflow_jax.checkpoints.files import read_json
from expertflow_jax.errors import InputError
from expertflow_jax.processing.apart import Apart, Refusal
from expertflow_jax.processing.template_worker import MEMORY, SECONDS, environment
from expertflow_jax.processing.text_codec import one_line
from expertflow_jax.processing.tokens import read_optional

LARGEST = 1 << 20  # bytes of a template; the longest that are published have 30,000
REASONING = (
    "reasoning_content",
    "thinking",
    "reasoning",
)  # of one field; templates read the first or second

RENDERER = Apart("template_worker.py", MEMORY, SECONDS)


class ChatTemplate:
    """A template that parses."""

    def __init__(self, source: Any, where: str):
        """
        Args:
          where: what to name in an error.

        Raises:
          InputError: it is no text, too long, or does not parse.
        """
        if not isinstance(source, str) or len(source) > LARGEST:
            what = f"{len(source):,} characters long" if isinstance(source, str) else f"{repr(source)[:60]}, not text"
            raise InputError(f"{where}: the chat template does not parse: it is {what}; download it again")
        try:
            environment().parse(source)
        except Exception as error:  # also too deep a nesting, or a number of too many digits
            raise InputError(f"{where}: the chat template does not parse: {one_line(error)}") from error
        self._source = source
        self._where = where

    def render(
        self, messages: Sequence[Mapping[str, Any]], special_tokens: Mapping[str, str], add_generation_prompt: bool
    ) -> str:
        """The prompt of a conversation.

        Raises:
          InputError: the template refuses the messages, or needs more memory or time than it may.
        """
        variables = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        turns = [_turn(message) for message in messages]
        try:
            return RENDERER.ask(self._source, {**special_tokens, **variables, "messages": turns})
        except Refusal as error:
            raise InputError(
                f"{self._where}: the chat template refuses these messages: {one_line(error)}; change either"
            ) from error


def _turn(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without what is None, its reasoning under each of the names that templates know."""
    turn = {key: value for key, value in message.items() if value is not None}
    for key in REASONING:
        if key in turn:
            return {"thinking": turn[key], **turn, "reasoning_content": turn[key]}
    return turn


def find_template(path: Path, settings: Mapping[str, Any]) -> ChatTemplate | None:
    """The template of a checkpoint directory, None if it has none.

    Files come before settings: chat_template.jinja with additional_chat_templates/, chat_template.json of older
    processors, processor_config.json, then tokenizer_config.json. Of several by name, it is "default".

    Args:
      settings: of tokenizer_config.json.

    Raises:
      InputError: a file is no UTF-8 text, or a template does not parse, or none of several is the default.
    """
    file, folder = path / "chat_template.jinja", path / "additional_chat_templates"
    if file.is_file():
        return ChatTemplate(_read_text(file), str(file))
    if (legacy := path / "chat_template.json").is_file():
        return _by_name(read_json(legacy).get("chat_template"), legacy)
    if names := sorted(each.stem for each in folder.glob("*.jinja")):
        if "default" in names:
            return ChatTemplate(_read_text(folder / "default.jinja"), str(folder / "default.jinja"))
        raise _without_default(folder, names)
    other = path / "processor_config.json"
    if (template := read_optional(other).get("chat_template")) is not None:
        return _by_name(template, other)
    return _by_name(settings.get("chat_template"), path / "tokenizer_config.json")


def _by_name(template: Any, file: Path) -> ChatTemplate | None:
    """A template, or the default of several: {name: template} or [{"name": name, "template": template}]."""
    if template is None:
        return None
    if isinstance(template, list):
        for entry in template:
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or "template" not in entry:
                raise InputError(
                    f'{file}: chat_template has the entry {repr(entry)[:60]}; want {{"name": ..., "template": ...}}'
                )
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        if "default" not in template:
            raise _without_default(file, sorted(template))
        template = template["default"]
    return ChatTemplate(template, str(file))


def _without_default(place: Path, names: list[str]) -> InputError:
    listed = ", ".join(names)[:100] or "none"
    return InputError(f"{place}: has chat templates ({listed}), but no default; save one as chat_template.jinja")


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > 4 * LARGEST:
            raise InputError(
                f"{file}: {file.stat().st_size:,} bytes are too many for a chat template; download it again"
            )
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 text ({error}); download it again") from error
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
