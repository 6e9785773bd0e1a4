"""Predictive expert caching and token scheduling for Mixture-of-Experts models in JAX/Flax."""

from typing import TYPE_CHECKING, Any

from expertflow_jax.errors import InputError

if TYPE_CHECKING:
    from expertflow_jax.api import Answer, OffloadedModel

__all__ = ["Answer", "InputError", "OffloadedModel"]


def __getattr__(name: str) -> Any:
    """Imports the API on first use, so that `--help` and light tools do not wait for JAX."""
    if name in __all__:
        from expertflow_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
