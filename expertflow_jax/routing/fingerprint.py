"""Names a model by what its routing depends on, so that a predictor refuses to forecast for another one.

The fingerprint hashes the config, every parameter's name and shape, and the contents of the tensors that decide
routing most directly (input embeddings and routers). Contents are rounded to bfloat16 first: a checkpoint loaded as
bfloat16 and as float32 is the same model.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from flax import nnx


def model_fingerprint(
    config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], tensors: Mapping[str, np.ndarray]
) -> str:
    """Hex fingerprint of a model (32 characters).

    Args:
      config: JSON-able model config; keys that do not change the model (dtype, library version) are left out.
      shapes: every parameter's name and shape.
      tensors: name -> array for the embedding table and the routers, hashed by content.
    """
    digest = hashlib.sha256()
    ignored = {"torch_dtype", "dtype", "transformers_version", "_name_or_path", "architectures"}
    decisive = {key: value for key, value in config.items() if key not in ignored}
    digest.update(json.dumps(decisive, sort_keys=True, default=str).encode())
    for name in sorted(shapes):
        digest.update(f"{name}:{','.join(str(int(n)) for n in shapes[name])};".encode())
    for name in sorted(tensors):
        rounded = np.ascontiguousarray(np.asarray(tensors[name]).astype(ml_dtypes.bfloat16))
        digest.update(f"{name}:{rounded.shape};".encode())
        digest.update(rounded.view(np.uint16).tobytes())
    return digest.hexdigest()[:32]


def fingerprint_of(config: Any, module: nnx.Module) -> str:
    """Fingerprint of a model as it is loaded; the experts' own parameters need not be in the module.

    Args:
      config: of the model; `to_hf()` gives it as JSON.
      module: has `embed_tokens.embedding` and, in its MoE layers, `router.kernel`; `experts` are ignored.
    """
    flat = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(module))}
    dense = {name: leaf for name, leaf in flat.items() if not name.startswith("experts.")}
    hashed = {
        name: np.asarray(leaf[...])
        for name, leaf in dense.items()
        if name == "embed_tokens.embedding" or name.endswith(".router.kernel")
    }
    return model_fingerprint(config.to_hf(), {name: leaf.shape for name, leaf in dense.items()}, hashed)
