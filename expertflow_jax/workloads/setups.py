"""Models made ready to be measured: the trained one as it is, and shapes that replay its routing.

Axes: N recorded sequences, T tokens, L MoE layers, E experts, K top-k.
"""

import dataclasses
from typing import Any

import numpy as np

from expertflow_jax.inference.loading import LoadedModel
from expertflow_jax.models.device_form import DeviceForm
from expertflow_jax.offload.store import ExpertSizes, ExpertStore
from expertflow_jax.offload.tiers import TieredStore
from expertflow_jax.predictor import Predictor
from expertflow_jax.processing.batching import Prompt
from expertflow_jax.simulation.gpus import LayerSize
from expertflow_jax.workloads import routes, shapes
from expertflow_jax.workloads.routes import Recording, ReplayedStages


@dataclasses.dataclass(frozen=True)
class Setup:
    """A model with the sequences it is measured on.

    Attributes:
      name: in configs and results.
      stages: compiled stages; `ReplayedStages` where the routing is replayed.
      store: the host tier.
      config: of the family.
      full: the MoE layer of the full-size model it stands for.
      recording: of the trained model.
      prompts: N prompts as this model reads them.
      ids: int32 [N, T, L, K], recorded routing in this model's experts; -1 where there is no token.
      forecast: float32 [N, T, L, E], what the trained predictor says of the same.
      following: float32 [N, T, L, E], what it says of the token after each.
      predictor: the trained predictor.
      fingerprint: names the trained model for its pre-gates; empty for a shape, which has none.
    """

    name: str
    stages: Any
    store: ExpertStore | TieredStore | ExpertSizes
    config: Any
    full: LayerSize
    recording: Recording
    prompts: list[Prompt]
    ids: np.ndarray
    forecast: np.ndarray
    following: np.ndarray
    predictor: Predictor
    fingerprint: str = ""

    @property
    def replayed(self) -> bool:
        """Whether the routing is the recorded one rather than the model's own."""
        return isinstance(self.stages, ReplayedStages)

    @property
    def own_stages(self) -> Any:
        """The stages with the model's own routing."""
        return self.stages.original if isinstance(self.stages, ReplayedStages) else self.stages

    @property
    def num_experts(self) -> int:
        """Of all layers."""
        return self.store.num_layers * self.store.num_experts


def predicted_uses(predictor: Predictor, recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """The predictor's P(token uses expert) for every recorded token, and for the one after it: float32 [N, T, L, E]."""
    every = [predictor.every_token(recording.embeddings[i : i + 32]) for i in range(0, len(recording.embeddings), 32)]
    own, following = zip(*every, strict=True)
    return np.concatenate(own), np.concatenate(following)


def trained_setup(
    model: LoadedModel, recording: Recording, uses: tuple[np.ndarray, np.ndarray], predictor: Predictor
) -> Setup:
    """The trained model, which routes for itself."""
    text = model.config.text
    ids = routes.choices(recording.probs, model.store.num_layers, text.num_experts, text.num_experts_per_tok)
    return Setup(
        model.name,
        model.stages,
        model.store,
        model.config,
        shapes.QWEN3_VL_30B,
        recording,
        list(recording.prompts),
        _without_padding(ids, recording),
        uses[0],
        uses[1],
        predictor,
        model.fingerprint,
    )


def shape_setup(
    name: str,
    recording: Recording,
    uses: tuple[np.ndarray, np.ndarray],
    predictor: Predictor,
    seed: int,
    weights: bool = True,
    form: DeviceForm | None = None,
) -> Setup:
    """A shape with random weights and the recorded routing.

    Args:
      weights: false leaves them out: enough to plan a run.
      form: how experts lie on the device; None: what suits it.
    """
    shape = shapes.find_shape(name)
    stages, store = shapes.build(shape, seed, form) if weights else shapes.describe(shape, form)
    sizes = (shape.num_layers, shape.full.num_experts, shape.full.top_k)
    rng = np.random.default_rng(seed)
    prompts = [
        Prompt(rng.integers(8, shapes.VOCABULARY, size=length).astype(np.int32)) for length in recording.prompt_lengths
    ]
    return Setup(
        name,
        ReplayedStages(stages),
        store,
        stages.config,
        shape.full,
        recording,
        prompts,
        _without_padding(routes.choices(recording.probs, *sizes), recording),
        routes.forecasts(uses[0], *sizes),
        routes.forecasts(uses[1], *sizes),
        predictor,
    )


def _without_padding(ids: np.ndarray, recording: Recording) -> np.ndarray:
    lengths = recording.prompt_lengths + recording.tokens.shape[1]
    inside = np.arange(ids.shape[1]) < lengths[:, None]
    return np.where(inside[..., None, None], ids, -1).astype(np.int32)
