"""Finds a model or predictor by what the user calls it: a committed name, a directory, or a hub id."""

from pathlib import Path

from expertflow_jax.errors import InputError, brief

ASSETS = Path(__file__).parent / "assets"
_WEIGHTS = "*.safetensors"
_WANTED_FILES = ("*.json", "*.jinja", "*.txt")  # never code, never pickles
_OTHER_WEIGHTS = ("consolidated*", "*/*.safetensors")  # the same model once more, in forms that are not read


def committed() -> list[str]:
    """Names of the models and predictors that come with the package."""
    return sorted(p.name for p in ASSETS.iterdir() if p.is_dir()) if ASSETS.is_dir() else []


def committed_predictor(model: str) -> str:
    """Name of the predictor that comes with the committed model `model`; empty if there is none."""
    name = f"{model.removesuffix('_moe')}_predictor"
    return name if {model, name} <= set(committed()) else ""


def locate(name: str, key: str = "model", *, weights: bool = True) -> Path:
    """The directory that `name` stands for, downloading a hub id's safetensors and JSON files if need be.

    Args:
      name: a directory, a committed name, or a hub id.
      key: what it is, for messages.
      weights: without them, only a hub id's small files are downloaded.

    Raises:
      InputError: no such directory, committed name or hub id.
    """
    if not name.strip():
        raise InputError(f"{key}: no name; give a directory, a hub id or a committed name")
    path = Path(name).expanduser()
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        pass
    except OSError as error:
        raise InputError(f"{key}: {brief(name)}: {error.strerror}; name another directory") from error
    if path.is_dir():
        return path
    if (ASSETS / name).is_dir():
        return ASSETS / name
    if path.exists():
        what = "GGUF, which is not read; " if path.suffix == ".gguf" else ""
        raise InputError(f"{key}: {name} is a file; {what}name the directory that holds config.json and safetensors")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _download(name, key, (*_WANTED_FILES, _WEIGHTS) if weights else _WANTED_FILES)
    raise InputError(
        f"{key}: {name!r} is no directory, and not among the committed ones ({', '.join(committed())}); "
        "a hub id looks like owner/name"
    )


def _download(hub_id: str, key: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(files), ignore_patterns=list(_OTHER_WEIGHTS)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(
            f"{key}: no directory {hub_id}, and the hub did not give it ({reason.rstrip('.')}); check "
            "the name, or download it where there is a network and name its directory"
        ) from error
