"""Renders chat templates, in a process apart (see `apart_main`).

A template is a program of the checkpoint's: jinja's sandbox keeps it from files and from Python's inside, but not from
making `'a' * 10**10` or loops without end.
"""

import datetime
import json
from collections.abc import Callable
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY = 512 << 20  # bytes
SECONDS = 1  # of processor time for one prompt, which takes milliseconds
CHARACTERS = 8_000_000  # of one prompt; no context holds so many


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up for chat templates."""
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    sandbox.filters["tojson"] = _to_json
    sandbox.globals |= {"raise_exception": _refuse, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace}
    return sandbox


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; the text within is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 (as jinja declares it)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """The type `dict` without its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """Holds no name with an underscore first."""

    def __init__(*args: Any, **kwargs: Any):  # an attribute may be called self
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no name with an underscore first, such as {name!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which models never saw."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


_parsed: dict[str, jinja2.Template] = {}  # by source


def answer(source: str, variables: dict[str, Any]) -> str:
    """What a template makes of its variables.

    Raises:
      ValueError: the text is too long.
      Exception: any; the template is the checkpoint's, and may fail in any way.
    """
    if source not in _parsed:
        _parsed.clear()  # one checkpoint is used at a time
        _parsed[source] = environment().from_string(source)
    text = _parsed[source].render(**variables)
    if len(text) > CHARACTERS:
        raise ValueError(f"it writes {len(text):,} characters, more than {CHARACTERS:,}")
    return text
