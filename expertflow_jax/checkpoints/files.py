"""The safetensors files of a checkpoint directory: which tensor lies where, opened as memory maps.

An index may name files beside it and nothing else (the files themselves may be links, as in the hub's cache), and
nothing but safetensors and JSON is read.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from expertflow_jax.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """Raises InputError if the file is missing or holds no JSON object."""
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; a checkpoint directory needs this file") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: want a JSON object")
    return value


class TensorFiles:
    """Tensors by name.

    Attributes:
      names: of all tensors.
    """

    def __init__(self, directory: Path):
        """
        Raises:
          InputError: no weights, a shard that is missing, truncated or damaged, or an index that names a file outside
            the directory or a tensor that its file does not hold.
        """
        self._directory = directory
        self._handles: dict[str, Any] = {}
        self._file_of: dict[str, str] = {}
        if (directory / INDEX).exists():
            weights = read_json(directory / INDEX).get("weight_map")
            if not isinstance(weights, dict) or not weights:
                raise InputError(f"{directory / INDEX}: no weight_map; download it again")
            held = {str(file): set(self._open(str(file)).keys()) for file in set(map(str, weights.values()))}
            for tensor, file in weights.items():
                if tensor not in held[str(file)]:
                    raise InputError(f"{directory / INDEX}: says that {file} holds {tensor}, which it does not")
                self._file_of[tensor] = str(file)
        else:
            self._file_of = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)

    @property
    def names(self) -> set[str]:
        return set(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading the tensor."""
        return tuple(self._slice(name).get_shape())

    def read(self, name: str, index: int | None = None) -> np.ndarray:
        """The tensor, or its entry `index` along the first axis."""
        part = self._slice(name)
        return part[index] if index is not None else part[:]

    def dtype(self, name: str) -> str:
        """As safetensors spells it: "F32", "BF16"."""
        return self._slice(name).get_dtype()

    def _slice(self, name: str) -> Any:
        return self._open(self._file_of[name]).get_slice(name)

    def _open(self, file: str) -> Any:
        if file in self._handles:
            return self._handles[file]
        path = self._directory / file
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise InputError(f"{self._directory / INDEX}: names {file!r}, which is no safetensors file beside it")
        if not path.is_file():
            raise InputError(f"{path}: no such file; the checkpoint's weights must be safetensors, all shards present")
        try:
            self._handles[file] = safe_open(str(path), framework="numpy")
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{path}: truncated or damaged ({error}); download it again") from error
        return self._handles[file]
