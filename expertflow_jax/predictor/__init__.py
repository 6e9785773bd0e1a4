"""The routing path predictor: model, loss, training, metrics, and its use at run time (DESIGN section 8)."""

from expertflow_jax.predictor.forecast import combine_sequences, step_forecast
from expertflow_jax.predictor.model import PredictorConfig, RoutingPathPredictor
from expertflow_jax.predictor.runtime import Predictor, PredictorCache
from expertflow_jax.predictor.storage import load_predictor

__all__ = [
    "Predictor",
    "PredictorCache",
    "PredictorConfig",
    "RoutingPathPredictor",
    "combine_sequences",
    "load_predictor",
    "step_forecast",
]
