"""Names in configs and calls: the nearest known one in every error, and classes from outside named by import path.

Wherever the package takes the name of a policy, scheduler, miss policy or task it also takes "package.module:Class",
a class, or an object. A name may carry options as a call does: "expertflow(gain=1.2)".
"""

import ast
import difflib
import importlib
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from expertflow_jax.errors import InputError


def find(kind: str, name: str, known: Iterable[str]) -> str:
    """`name`, if it is among `known`.

    Args:
      kind: what is named, as the error's first words: "policy", "config key".

    Raises:
      InputError: it is not; the message suggests the nearest name and lists all.
    """
    names = list(known)
    if name in names:
        return name
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)
    suggestion = f"did you mean {near[0]!r}? Known: {', '.join(names)}" if near else "none is known"
    raise InputError(f"{kind} {name!r} does not exist; {suggestion}")


def resolve[T](kind: str, value: "str | type[T] | T", registry: Mapping[str, type[T]], base: type[T]) -> "type[T] | T":
    """The class or object that is meant.

    Args:
      kind: as in `find`.
      value: a name of the registry, "package.module:Class", a subclass of `base`, or an instance of one.
      registry: classes by name.
      base: what every class has to be a subclass of.

    Raises:
      InputError: the name is not in the registry; the module cannot be imported or has no such class; or what was
        given is no `base`.
    """
    if not isinstance(value, str):
        return _checked(kind, value, base, repr(value))
    if ":" not in value:
        return registry[find(kind, value, registry)]
    return _checked(kind, _imported(kind, value), base, value)


def make[T](kind: str, value: "str | type[T] | T", registry: Mapping[str, type[T]], base: type[T], **options: Any) -> T:
    """An object of the class that `value` names (see `resolve`), built with these options; an instance is passed on.

    Raises:
      InputError: as `resolve`; or the class does not take an option, needs one, or refuses its value.
    """
    if isinstance(value, str):
        value, written = split_options(kind, value)
        options = {**written, **options}
    what = resolve(kind, value, registry, base)
    if not isinstance(what, type):
        if options:
            raise InputError(
                f"{kind} {what!r} is an object already; give options {', '.join(options)} where it is made"
            )
        return what
    label = f"{kind} {getattr(what, 'name', '') or what.__name__}"
    _check_options(label, what, options)
    return what(**options)


def split_options(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """The name and the options of a text such as "expertflow(gain=1.2, likely=0.4)"; values are Python literals.

    Raises:
      InputError: there are parentheses, and what is inside is not a list of key=value.
    """
    match = re.fullmatch(r"\s*([^()\s]+)\s*(?:\((.*)\))?\s*", text, re.DOTALL)
    if match is None or not match[2]:
        return (match[1] if match else text), {}
    try:
        call = ast.parse(f"options({match[2]})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError(match[2])
        return match[1], {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise InputError(f"{kind} {text!r}: write options as {match[1]}(key=value, key=value)") from None


def _imported(kind: str, path: str) -> Any:
    """What "package.module:Class" names."""
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = f"no module {error.name!r}" if error.name else str(error)
        raise InputError(f"{kind} {path!r}: {missing} is found; install it, or add its folder to PYTHONPATH") from error
    except Exception as error:  # whatever the user's module does while it is read
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{kind} {path!r}: module {module_name} fails on import with {reason}") from error
    if not hasattr(module, class_name):
        classes = [name for name, value in vars(module).items() if isinstance(value, type)]
        find(f"{kind} {path!r}: in {module_name} class", class_name, classes)
    return getattr(module, class_name)


def _checked[T](kind: str, value: Any, base: type[T], label: str) -> "type[T] | T":
    """`value`, if it is a subclass or an instance of `base`."""
    if isinstance(value, base) or (isinstance(value, type) and issubclass(value, base)):
        return value
    raise InputError(f"{kind} {label}: not a {base.__name__}; subclass {base.__module__}.{base.__name__}")


def _check_options(label: str, made: type, options: Mapping[str, Any]) -> None:
    """Refuses options that the class does not take, and the lack of one that it needs."""
    parameters = list(inspect.signature(made).parameters.values())
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        takes = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        for option in options:
            find(f"{label}: option", option, takes)
    needs = [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    lacks = [name for name in needs if name not in options]
    if lacks:
        raise InputError(f"{label}: give it {', '.join(lacks)}, as in NAME({lacks[0]}=...) or as an object")
