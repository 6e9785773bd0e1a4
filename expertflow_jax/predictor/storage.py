"""Predictors on disk: `predictor.safetensors` beside `predictor_config.json`, bound to one served model.

The config records the model's fingerprint, how the predictor was trained, what it was measured to do, and
a digest of the weights, so that a predictor of another model, or half a file, is refused instead of
quietly forecasting nonsense.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx, traverse_util
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as dump_tensors

from expertflow_jax.errors import InputError
from expertflow_jax.files import make_folder, write_atomically, write_json
from expertflow_jax.predictor.model import PredictorConfig, RoutingPathPredictor
from expertflow_jax.predictor.runtime import Predictor

FORMAT = "expertflow_jax.predictor/2"
WEIGHTS = "predictor.safetensors"
CONFIG = "predictor_config.json"
_SCALE, _BIAS, _POPULARITY = "calibration.scale", "calibration.bias", "popularity"


def flatten_parameters(state: nnx.State) -> dict[str, np.ndarray]:
    """Parameter tree -> name -> array, names joined with dots."""
    flat = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    return {".".join(map(str, path)): np.asarray(value) for path, value in flat.items()}


def unflatten_parameters(config: PredictorConfig, tensors: dict[str, np.ndarray], source: str) -> nnx.State:
    """Inverse of `flatten_parameters`; raises InputError naming every missing, unknown, misshapen or
    non-finite tensor."""
    abstract = nnx.eval_shape(lambda: RoutingPathPredictor(config, rngs=nnx.Rngs(0)))
    _, state = nnx.split(abstract)
    wanted = traverse_util.flatten_dict(nnx.to_pure_dict(state))
    names = {".".join(map(str, path)): path for path in wanted}
    problems = [f"{name} missing" for name in sorted(set(names) - set(tensors))]
    problems += [f"{name} unknown" for name in sorted(set(tensors) - set(names))]
    for name in sorted(set(names) & set(tensors)):
        shape = tuple(wanted[names[name]].shape)
        if tensors[name].shape != shape:
            problems.append(f"{name} has shape {tensors[name].shape}, expected {shape}")
        elif not np.isfinite(tensors[name]).all():
            problems.append(f"{name} is not finite")
    if problems:
        raise InputError(f"{source}: {'; '.join(problems)}; train the predictor again")
    filled = {path: np.asarray(tensors[name], np.float32) for name, path in names.items()}
    nnx.replace_by_pure_dict(state, traverse_util.unflatten_dict(filled))
    return state


def save_predictor(predictor: Predictor, path: str | Path) -> None:
    """Writes both files into the folder `path`, each all or nothing, the config last."""
    folder = make_folder(path)
    tensors = flatten_parameters(predictor.parameters)
    tensors |= {_SCALE: np.asarray(predictor.scale), _BIAS: np.asarray(predictor.bias)}
    tensors[_POPULARITY] = predictor.popularity
    weights = dump_tensors({name: np.ascontiguousarray(value) for name, value in tensors.items()})
    description = {
        "format": FORMAT,
        "config": predictor.config.to_dict(),
        "model_fingerprint": predictor.model_fingerprint,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "provenance": predictor.provenance,
        "metrics": predictor.metrics,
    }
    write_atomically(folder / WEIGHTS, weights)
    write_json(folder / CONFIG, description, indent=1)


def load_predictor(path: str | Path, *, expect_fingerprint: str | None = None) -> Predictor:
    """Reads a predictor from its folder (or from the path of one of its two files).

    Args:
      expect_fingerprint: fingerprint of the model to be served; None accepts any.

    Raises:
      InputError: files missing, truncated, corrupt or not matching each other; or the predictor was
      trained for
        another model.
    """
    folder = Path(path)
    if folder.name in (WEIGHTS, CONFIG):
        folder = folder.parent
    description = _read_description(folder / CONFIG)
    config = _read_config(description, folder / CONFIG)
    fingerprint = description.get("model_fingerprint", "")
    if expect_fingerprint is not None and fingerprint != expect_fingerprint:
        raise InputError(
            f"predictor {folder} was trained for model {fingerprint or 'unknown'}, not for "
            f"{expect_fingerprint}; train "
            "one for this model with train.predictor"
        )
    weights = _read_bytes(folder / WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != description.get("weights_sha256"):
        raise InputError(f"{folder / WEIGHTS}: truncated, corrupt or not the one that {CONFIG} describes")
    try:
        tensors = load_tensors(weights)
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{folder / WEIGHTS}: not a safetensors file ({error})") from error
    layers, experts = config.moe_layers, config.num_experts
    extras = {}
    for name, shape in ((_SCALE, (2, layers)), (_BIAS, (2, layers)), (_POPULARITY, (layers, experts))):
        value = tensors.pop(name, None)
        if value is None or value.shape != shape or not np.isfinite(value).all():
            raise InputError(f"{folder / WEIGHTS}: {name} missing or malformed; train the predictor again")
        extras[name] = value
    return Predictor(
        config,
        unflatten_parameters(config, tensors, str(folder / WEIGHTS)),
        scale=extras[_SCALE],
        bias=extras[_BIAS],
        popularity=extras[_POPULARITY],
        model_fingerprint=fingerprint,
        provenance=description.get("provenance"),
        metrics=description.get("metrics"),
    )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"predictor: {path} cannot be read ({error.strerror}); train one with train.predictor"
        ) from error


def _read_description(path: Path) -> dict[str, Any]:
    data = _read_bytes(path)
    try:
        description = json.loads(data.decode())
    except ValueError as error:
        raise InputError(f"{path}: truncated or malformed JSON; train the predictor again") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise InputError(f"{path}: not a {FORMAT} description; train the predictor again")
    return description


def _read_config(description: dict[str, Any], path: Path) -> PredictorConfig:
    values = description.get("config")
    if not isinstance(values, dict):
        raise InputError(f"{path}: no predictor config in it; train the predictor again")
    try:
        return PredictorConfig.from_dict(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
