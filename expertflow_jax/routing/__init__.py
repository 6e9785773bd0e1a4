"""Routing traces: record, store, read; routing signatures and statistics (DESIGN section 3)."""

from expertflow_jax.routing.fingerprint import model_fingerprint
from expertflow_jax.routing.recorder import SequenceRecorder
from expertflow_jax.routing.statistics import signatures
from expertflow_jax.routing.trace import RoutingTrace
from expertflow_jax.routing.trace_set import TraceSet, TraceSetWriter

__all__ = [
    "RoutingTrace",
    "SequenceRecorder",
    "TraceSet",
    "TraceSetWriter",
    "model_fingerprint",
    "signatures",
]
