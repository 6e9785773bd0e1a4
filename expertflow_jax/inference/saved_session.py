"""What a session is at between two batches, as bytes, and back; see `offload.saved_state`.

Saved are the engine, what the miss policy has learnt and lost, the forecaster's place, and the session's counters.
"""

from collections.abc import Collection
from typing import Any

from expertflow_jax.inference.forecasting import Forecaster
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.offload import saved_state

_COUNTERS = ("_batches", "_super_steps", "_sampled", "peak_device_bytes")  # of a session
_PLACES = ("tokens_saved", "step")  # of forecasters that have them


def save(session: InferenceSession, forecaster: Forecaster, more: Any = None) -> bytes:
    """Call it while no batch runs, on the virtual clock.

    Args:
      more: plain values that go with it.

    Raises:
      saved_state.CannotBeSaved: a policy holds what has no form as bytes.
    """
    parts = {
        **saved_state.engine_parts(session.engine),
        "session": {name: getattr(session, name) for name in _COUNTERS},
        "losses": vars(session.losses),
        "miss_policy": _variables(session.miss_policy),
        "forecaster": {name: value for name, value in _variables(forecaster).items() if name in _PLACES},
        "more": more,
    }
    return saved_state.dump(parts, saved_state.engine_objects(session.engine))


def restore(content: bytes, session: InferenceSession, forecaster: Forecaster, modules: Collection[str] = ()) -> Any:
    """Brings a session, new and of the same arguments, to where the saved one was; returns `more` of `save`.

    Args:
      modules: of classes that the policies are of, besides this package's.
    """
    parts = saved_state.load(content, saved_state.engine_objects(session.engine), modules)
    saved_state.put_back(session.engine, parts)
    for owner, name in ((session, "session"), (session.losses, "losses"), (forecaster, "forecaster")):
        vars(owner).update(parts[name])
    if parts["miss_policy"]:
        vars(session.miss_policy).update(parts["miss_policy"])
    return parts["more"]


def _variables(owner: Any) -> dict[str, Any]:
    return getattr(owner, "__dict__", {})
