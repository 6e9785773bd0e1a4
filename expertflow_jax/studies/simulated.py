"""The studies that need no weights on a device: a config's key `study` says which one it asks for."""

import importlib
from typing import Any

import ml_collections

from expertflow_jax import names
from expertflow_jax.errors import InputError

_RUNNERS = {
    "growth": "expertflow_jax.studies.growth.runner",
    "ablations": "expertflow_jax.studies.ablations.runner",
    "blocks": "expertflow_jax.studies.blocks.runner",
    "lossy": "expertflow_jax.studies.lossy.runner",
    "paper": "expertflow_jax.studies.claims.paper",
}


def runner_of(config: ml_collections.ConfigDict) -> Any:
    """The module with `plan(config)` and `run(config, workdir, command)` of the config's study.

    Raises:
      InputError: the config names none, or one that does not exist.
    """
    if "study" not in config:
        raise InputError(
            "config key study is missing; see configs/scale_cpu.py, configs/ablations.py, configs/blocks.py, "
            "configs/frontier_at_scale.py and configs/paper.py"
        )
    return importlib.import_module(_RUNNERS[names.find("config key study:", config.study, _RUNNERS)])
