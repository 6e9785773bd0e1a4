"""The tokenizer of a checkpoint: tokenizer.json, and the tokens that only the files beside it name, as transformers 5
reads them.

tokenizer_config.json names tokens by role (`eos_token`, `image_token`, ...), by id (`added_tokens_decoder`) and in
lists (`extra_special_tokens`, once `additional_special_tokens`); where it has no `added_tokens_decoder`,
special_tokens_map.json and added_tokens.json, which older versions wrote, do. A token that tokenizer.json lacks gets
the next free id.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from expertflow_jax.checkpoints.files import read_json
from expertflow_jax.errors import InputError
from expertflow_jax.processing.text_codec import FLAGS, TextCodec, one_line

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_tokenizer(path: Path) -> tuple[TextCodec, dict[str, str]]:
    """The tokenizer of a checkpoint directory, and its special tokens by role, as chat templates see them.

    Raises:
      InputError: tokenizer.json is missing or damaged, or a file beside it names a token that is none.
    """
    file = path / "tokenizer.json"
    if not file.is_file():
        raise InputError(f"{file}: no such file; a checkpoint needs it for text")
    codec = TextCodec(file)
    settings = read_optional(path / "tokenizer_config.json")
    if codec.pad_token is not None:
        settings.setdefault("pad_token", codec.pad_token)
    added = codec.vocabulary.get_added_tokens_decoder()
    by_id, roles, extras = _named_tokens(path, settings, added)
    known = {str(token) for token in [*added.values(), *by_id.values()]}
    tokens: list[str | AddedToken] = [by_id[i] for i in sorted(by_id)]
    forms = {repr(token) for token in tokens}
    for token in [*roles.values(), *extras]:
        if str(token) not in known and repr(token) not in forms:  # other flags replace the earlier ones
            tokens.append(token)
            forms.add(repr(token))
    names = {str(token) for token in roles.values()}
    flagged = [AddedToken(token, special=True) if isinstance(token, str) else token for token in tokens]
    for token in flagged:
        token.special = token.special or str(token) in names
    split = settings.get("split_special_tokens", False)
    if not isinstance(split, bool):
        raise InputError(f"{path / 'tokenizer_config.json'}: split_special_tokens is {split!r}; want true or false")
    codec.add(flagged, split)
    return codec, {role: str(token) for role, token in roles.items()}


def read_optional(path: Path) -> dict[str, Any]:
    """The JSON object of a file, empty if there is none."""
    return read_json(path) if path.is_file() else {}


def _named_tokens(
    path: Path, settings: dict[str, Any], added: Mapping[int, AddedToken]
) -> tuple[dict[int, AddedToken], dict[str, str | AddedToken], list[str | AddedToken]]:
    """Tokens by id, by role, and others, of the files beside tokenizer.json, whose tokens are `added`."""
    file = path / "tokenizer_config.json"
    name_of_extras = "extra_special_tokens" if settings.get("extra_special_tokens") else "additional_special_tokens"
    extras = settings.get(name_of_extras) or []
    values = {key: value for key, value in settings.items() if _is_role(key, value)}
    where: dict[str, Any] = dict.fromkeys(values, file)
    # What the model's own roles are called here comes before what special_tokens_map.json says.
    first = {key: value for key, value in values.items() if key not in ROLES and isinstance(value, str)}
    if isinstance(extras, dict):  # by role
        first |= {key: value for key, value in extras.items() if value is not None}
        where |= dict.fromkeys(extras, f"{file}: {name_of_extras}")
        extras = []
    values = {key: value for key, value in values.items() if key not in first}
    by_id: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in settings:
        for key, value in _object(settings["added_tokens_decoder"], f"{file}: added_tokens_decoder").items():
            name = f"{file}: added_tokens_decoder {key!r}"
            if not str(key).isdecimal() or not isinstance(value, dict):
                raise InputError(f"{name} is {_short(value)}; want an id and an object with the token's content")
            by_id[int(key[:20])] = _flagged(value, name)
    else:
        other = path / "special_tokens_map.json"
        for key, value in read_optional(other).items():
            if key in ("extra_special_tokens", "additional_special_tokens"):
                if isinstance(value, list) and isinstance(extras, list):
                    extras = [*extras, *value] if key == "extra_special_tokens" or not extras else extras
                else:
                    extras = value or extras
            elif _is_role(key, value):
                value = {**value, "special": True} if isinstance(value, dict) else value
                values, where = values | {key: value}, {key: other} | where if key in first else where | {key: other}
        file = file if file.is_file() else other
    if not isinstance(extras, list):
        raise InputError(f"{file}: {name_of_extras} is {_short(extras)}; want a list of tokens, or an object")
    others = [_token(value, f"{file}: {name_of_extras}") for value in extras]
    values |= first
    ordered = [*(key for key in ROLES if key in values), *(key for key in values if key not in ROLES)]
    roles = {key: _token(values[key], f"{where[key]}: {key}") for key in ordered if values[key] is not None}
    if "added_tokens_decoder" not in settings:
        special = {str(token) for key, token in roles.items() if key in ROLES}
        special |= {token for token in others if isinstance(token, str)}
        by_id = _legacy_tokens(path / "added_tokens.json", special) | dict(added)
    flagged = {str(token): token for token in by_id.values()}
    roles |= {key: flagged.get(str(roles[key]), roles[key]) for key in ROLES if key in roles}
    return by_id, roles, others


def _is_role(key: str, value: Any) -> bool:
    """Whether a setting names a token; `add_bos_token` and the like are switches."""
    return key in ROLES or (
        key.endswith("_token") and (isinstance(value, str) or (isinstance(value, dict) and bool(value)))
    )


def _legacy_tokens(file: Path, special: set[str]) -> dict[int, AddedToken]:
    tokens = {}
    for content, index in read_optional(file).items():
        if not isinstance(index, int) or index < 0:
            raise InputError(f"{file}: {content!r} has the id {_short(index)}; want a number of at least 0")
        tokens[index] = AddedToken(content, normalized=content not in special, special=content in special)
    return tokens


def _token(value: Any, where: str) -> str | AddedToken:
    """A token that is written as text, then special, or as an object with content and flags.

    Raises:
      InputError: anything else.
    """
    if isinstance(value, str):
        return _utf8(value, where)
    return _flagged(value, where)


def _flagged(value: Any, where: str) -> AddedToken:
    flags = {key: flag for key, flag in value.items() if key in FLAGS} if isinstance(value, dict) else {}
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("content"), str)
        or set(value) - set(FLAGS) - {"content", "__type", "id"}
        or not all(isinstance(flag, bool) for flag in flags.values())
    ):
        raise InputError(
            f'{where} is {_short(value)}; want a token\'s text, or {{"content": text}} with {", ".join(FLAGS)} '
            "true or false"
        )
    return AddedToken(_utf8(value["content"], where), **flags)


def _utf8(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where} is no Unicode text ({one_line(error)})") from error
    return text


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is {_short(value)}; want an object")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
