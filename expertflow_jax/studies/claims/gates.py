"""Claim 5, that pre-gates choose experts and no router does: measured on the trained model with its distilled gates.

Three runs of the same questions: with gates; with gates and every router but the first spoilt; and, as a control,
without gates and so spoilt. Routers are still part of the compiled layers; what is measured is that nothing reads them.
Axes: N questions, B sequences, T tokens, L MoE layers, E experts, K top-k, D model width.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from expertflow_jax.harness.data import TaskData
from expertflow_jax.inference.forecasting import NoForecast
from expertflow_jax.inference.generation import Generated, generate_batch
from expertflow_jax.inference.layer_stages import Attended
from expertflow_jax.inference.loading import LoadedModel
from expertflow_jax.inference.members import StepRecord
from expertflow_jax.inference.pregated import committed_gates
from expertflow_jax.inference.served import serve
from expertflow_jax.locate import locate
from expertflow_jax.offload.variant import RESIDENT, Variant
from expertflow_jax.predictor.pregates import PreGates, load_pregates
from expertflow_jax.simulation.costs import ComputeCosts
from expertflow_jax.simulation.event_log import Ask, EventLog, listening
from expertflow_jax.studies.claims.mechanisms import Measures

BATCH_SIZE = 16


class HeardStages:
    """Stages whose residual streams are overheard where routers read them."""

    def __init__(self, stages: Any):
        self._stages = stages
        self.streams: list[jax.Array] = []  # [B, T, D] of every layer of every step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stages, name)

    def attend_and_route(self, layer: int, x: Any, kv: Any, *where: Any) -> Attended:
        attended = self._stages.attend_and_route(layer, x, kv, *where)
        self.streams.append(attended.h)
        return attended


def with_spoilt_routers(stages: Any) -> Any:
    """The same stages with other router weights in all layers but the first."""
    spoilt = copy.copy(stages)
    spoilt.layer_weights = list(stages.layer_weights)

    def negated(path: Any, weights: jax.Array) -> jax.Array:
        return -weights if "router" in jax.tree_util.keystr(path) else weights

    for layer in range(1, len(stages.layer_weights)):
        tree = jax.tree.unflatten(stages.layer_stages[layer].treedef, stages.layer_weights[layer])
        spoilt.layer_weights[layer] = tuple(jax.tree.leaves(jax.tree_util.tree_map_with_path(negated, tree)))
    return spoilt


@dataclasses.dataclass(frozen=True)
class Answers:
    """Of all questions, in order.

    Attributes:
      records, streams: of every step, and of every layer of every step.
      logs: of events, one for each batch.
    """

    generated: list[Generated]
    records: list[StepRecord]
    streams: list[jax.Array]
    logs: list[EventLog]

    @property
    def digests(self) -> list[str]:
        """One word for all logits of an answer."""
        return [answer.logits_digest for answer in self.generated]


def answer(
    model: LoadedModel, data: TaskData, variant: Variant, slots: int, link: str, costs: ComputeCosts, stages: Any
) -> Answers:
    """Greedy answers under the variant, on the virtual clock."""
    assert model.processor is not None, "the questions are text"
    heard = HeardStages(stages)
    answers = Answers([], [], heard.streams, [])
    for first in range(0, len(data.prompts), BATCH_SIZE):
        rows = slice(first, first + BATCH_SIZE)
        with (
            serve(model, variant, slots, link, costs=costs, stages=heard) as session,
            listening(session.engine) as log,
        ):
            session.records = answers.records
            answers.generated.extend(
                generate_batch(
                    session,
                    data.prompts[rows],
                    NoForecast(),
                    max_new_tokens=[example.max_new_tokens for example in data.examples[rows]],
                    stop_ids=model.processor.eos_token_ids,
                    batch_size=BATCH_SIZE,
                )
            )
        answers.logs.append(log)
    return answers


def measure_gates(
    model: LoadedModel, data: TaskData, policy: str, slots: int, link: str, costs: ComputeCosts
) -> Measures:
    """Of the policy, whose gates decide; the accuracies are what that does to the answers."""
    gates = load_pregates(locate(committed_gates(model.name), "pre-gates"), model.fingerprint)
    spoilt, variant = with_spoilt_routers(model.stages), Variant.of(policy)
    plain = answer(model, data, RESIDENT, slots, link, costs, model.stages)
    gated = answer(model, data, variant, slots, link, costs, model.stages)
    without_routers = answer(model, data, variant, slots, link, costs, spoilt)
    control = answer(model, data, RESIDENT, slots, link, costs, spoilt)
    return {
        "choices that the gate before names": chosen_by_gates(gated, gates),
        "answers whose bits spoilt routers leave": _alike(gated.digests, without_routers.digests),
        "answers that spoilt routers change without gates": 1 - _alike(plain.digests, control.digests),
        "asked beyond the first layer and there or under way": foreseen(gated.logs),
        "unasked transfers that their layer asks for": asked_later(gated.logs),
        "accuracy": _accuracy(model, data, gated),
        "accuracy with routers": _accuracy(model, data, plain),
    }


def _alike(some: Sequence[str], others: Sequence[str]) -> float:
    return float(np.mean([one == other for one, other in zip(some, others, strict=True)]))


def chosen_by_gates(answers: Answers, gates: PreGates) -> float:
    """Share of the choices beyond the first layer that are among the K which the gate before them puts first."""
    streams, named = iter(answers.streams), []
    for record in answers.records:
        ids_BxTxLxK = record.expert_ids
        top_k = ids_BxTxLxK.shape[-1]
        stream_of_layer = [next(streams) for _ in range(ids_BxTxLxK.shape[2])]
        for layer in range(1, len(stream_of_layer)):
            probs_BxTxE = gates.probs(layer - 1, stream_of_layer[layer - 1])
            first_BxTxK = np.asarray(jax.lax.top_k(jnp.asarray(probs_BxTxE), top_k)[1])
            chosen_BxTxK = ids_BxTxLxK[:, :, layer]
            among = (chosen_BxTxK[..., :, None] == first_BxTxK[..., None, :]).any(-1)
            named.append(among[chosen_BxTxK >= 0])
    return float(np.concatenate(named).mean())


def foreseen(logs: Sequence[EventLog]) -> float:
    """Share of the experts asked for beyond the first layer that had a slot, or were on their way into one."""
    there = [
        ask.layer * log.num_experts + expert in ask.held
        for log in logs
        for ask in log.asks
        if ask.layer
        for expert in ask.experts
    ]
    return float(np.mean(there))


def asked_later(logs: Sequence[EventLog]) -> float:
    """Share of the transfers sent before their layer asked that it then asks for."""
    asked = []
    for log in logs:
        following: dict[int, tuple[int, ...]] = {}  # what each layer asks for next
        for event in reversed(log.events()):
            if isinstance(event, Ask):
                following[event.layer] = event.experts
            elif event.kind == "prefetch":
                asked.append(event.expert in following.get(event.layer, ()))
    return float(np.mean(asked))


def _accuracy(model: LoadedModel, data: TaskData, answers: Answers) -> float:
    """By the task's metric."""
    assert model.processor is not None, "the questions are text"
    texts = [model.processor.decode(one.token_ids).strip() for one in answers.generated]
    return data.task.aggregate(data.examples, texts)["accuracy"]
