"""A model served through an expert cache: the one place where stages, engine, miss policy and forecaster come together.

    with serve(model, Variant.of("expertflow"), slots, link) as session:
        forecaster = make_forecaster(session, variant, predictor)

Axes: L MoE layers, E experts.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from expertflow_jax.errors import InputError
from expertflow_jax.inference.forecasting import Forecaster, NoForecast, TrueForecast
from expertflow_jax.inference.loading import LoadedModel, load_model, with_expert_dtype
from expertflow_jax.inference.predicted import PredictedForecast
from expertflow_jax.inference.pregated import with_gates
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.locate import locate
from expertflow_jax.models.device_form import DeviceForm
from expertflow_jax.offload.clock import Clock
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.offload.misses import MissPolicy, make_miss_policy
from expertflow_jax.offload.policies import make_policy
from expertflow_jax.offload.variant import Variant, new_engine
from expertflow_jax.predictor import Predictor, load_predictor
from expertflow_jax.simulation.costs import ComputeCosts

_LOG = logging.getLogger(__name__)


def load_with_predictor(model: str, predictor: str, form: DeviceForm | None = None) -> tuple[LoadedModel, Predictor]:
    """A model and the predictor that was trained on it, each by a committed name or a path; form: see `load_model`.

    Raises:
      InputError: there is no such model or predictor, or the predictor is another model's.
    """
    loaded = load_model(model, form=form)
    return loaded, load_predictor(locate(predictor, "predictor"), expect_fingerprint=loaded.fingerprint)


class Served(Protocol):
    """What a session needs of a model: a `LoadedModel` has it, and a `workloads.setups.Setup`."""

    @property
    def stages(self) -> Any:
        """Compiled stages with the dense parameters."""

    @property
    def store(self) -> Any:
        """The host tier with all experts."""


def open_session(
    model: Served,
    variant: Variant,
    slots: int | None = None,
    link: LinkSpec | str = "direct",
    clock: Clock | None = None,
    *,
    miss_policy: str | type[MissPolicy] | MissPolicy = "wait",
    costs: ComputeCosts | None = None,
    disk: LinkSpec | str = "direct",
    stages: Any = None,
    copies: Served | None = None,
) -> InferenceSession:
    """A session on a warm cache of its own; close its `engine` at the end, or use `serve`.

    Args:
      slots: expert slots; None, or a policy that keeps everything: as many as there are experts.
      clock: a new virtual one by default.
      miss_policy: a name, "package.module:Class", a class or an object.
      costs: seconds of each stage on a virtual clock; None under the real one.
      disk: from files to host memory, on the virtual clock.
      stages: instead of the model's own, for example ones that are listened to.
      copies: the model with quantised experts, for a miss policy that runs such; None: made here if it is needed.

    Raises:
      InputError: fewer slots than the policy needs, an unknown link or miss policy, one that runs quantised copies of a
        model that cannot have them, or pre-gates that are not there.
    """
    misses = make_miss_policy(miss_policy)
    if misses.copies and copies is None:
        copies = quantized_copies(model, misses)
    stages = with_gates(model.stages if stages is None else stages, make_policy(variant.policy), model)
    copied, form = (None, stages.form) if copies is None else (copies.store, stages.form.separate)
    engine = new_engine(model.store, variant, slots, link, clock, disk, copied, form)
    if concern := engine.policy.concern(model.stages.config.text.num_experts_per_tok):
        _LOG.warning(concern)
    return InferenceSession(
        stages,
        engine,
        misses,
        costs,
        copies=None if copies is None else copies.stages,
    )


def quantized_copies(model: Served, misses: MissPolicy) -> LoadedModel:
    """The same model with the quantised experts that the miss policy runs, all of them in host memory.

    Raises:
      InputError: the model's own experts are quantised, or it has no checkpoint to quantise.
    """
    if not isinstance(model, LoadedModel) or model.quantized:
        raise InputError(
            f"miss policy {misses.name}: its {misses.copies} copies are made of a checkpoint's whole experts; load the "
            "model without expert_dtype, or take another miss policy"
        )
    return with_expert_dtype(model, misses.copies, None)


@contextlib.contextmanager
def serve(*args: Any, **options: Any) -> Iterator[InferenceSession]:
    """`open_session`, with the engine closed at the end."""
    session = open_session(*args, **options)
    with session.engine:
        yield session


def make_forecaster(
    session: InferenceSession,
    variant: Variant,
    predictor: Predictor | None = None,
    truth: Sequence[np.ndarray] | np.ndarray | None = None,
    look_ahead: int = 8,
) -> Forecaster:
    """Where the variant's horizons come from, for steps that this session will run.

    Args:
      predictor: for the forecast "predictor"; None stands for no forecast.
      truth: for the forecast "truth": bool [L, E] of every super-step, in order.
      look_ahead: super-steps of the truth that a horizon holds.
    """
    if variant.forecast == "truth":
        assert truth is not None, "the truth is known after the resident run"
        return TrueForecast(list(truth), look_ahead)
    if variant.forecast == "predictor" and predictor is not None and session.engine.forecasts:
        return PredictedForecast(predictor, session.engine.clock, session.costs)
    return NoForecast()
