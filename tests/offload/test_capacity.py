"""Capacity per batch on a worked example; Switch's own, per sequence, does not depend on who stands beside."""

from pathlib import Path

import numpy as np
import pytest

from expertflow_jax import OffloadedModel
from expertflow_jax.errors import InputError
from expertflow_jax.offload.misses import LayerStep, make_miss_policy

SWITCH = Path(__file__).parents[1] / "goldens" / "models" / "switch_small_capacity"
IDS = np.array([[0, 1], [0, 2], [1, 0], [-1, -1], [0, 1]], np.int32)


def a_step(ids=IDS, prefill=True):
    tokens = len(ids)
    weights = np.where(ids >= 0, np.array([0.6, 0.3], np.float32), 0)
    flags = np.full(tokens, prefill), np.zeros(tokens, bool)
    return LayerStep(0, 1, ids, weights, np.full((tokens, 4), 0.25, np.float32), np.ones(4, bool), flags[1], flags[0])


def test_first_choices_take_their_places_first_in_the_order_of_tokens():
    decision = make_miss_policy("capacity(factor=1)").decide(a_step())  # 4 tokens * 2 / 4 experts: two places each
    assert decision.expert_ids.tolist() == [[0, 1], [0, 2], [1, -1], [-1, -1], [-1, -1]]
    assert decision.weights[2].tolist() == pytest.approx([0.6, 0])  # what stays keeps its weight
    assert not decision.as_chosen


def test_other_mates_in_the_batch_other_losses():
    alone = make_miss_policy("capacity(factor=1)").decide(a_step(IDS[[4, 3]]))
    assert alone.as_chosen
    first = make_miss_policy("capacity(factor=1)").decide(a_step(IDS[[4, 0, 1, 2, 3]]))
    assert first.expert_ids[0].tolist() == [0, 1]  # before the others it loses nothing


def test_nothing_is_dropped_where_there_is_room_or_no_loss_is_allowed():
    assert make_miss_policy("capacity(factor=2)").decide(a_step()).as_chosen  # E / K
    assert make_miss_policy("capacity(factor=0.1, phase='prefill')").decide(a_step(prefill=False)).as_chosen
    assert (make_miss_policy("capacity(factor=0)").decide(a_step()).expert_ids == -1).all()
    with pytest.raises(InputError, match="factor=-1"):
        make_miss_policy("capacity(factor=-1)")


def test_the_capacity_of_a_switch_router_is_the_sequences_own():
    random = np.random.default_rng(0)
    some, one, other = random.integers(5, 48, (3, 24)).astype(np.int32)
    with OffloadedModel.from_pretrained(SWITCH, cache_fraction=0.5, policy="on_demand") as model:
        traces = [model.routing_trace(np.stack([some, mate])).experts[0] for mate in (one, other)]
        losses = (traces[0] < 0).sum()
    assert losses > 0
    assert (traces[0] == traces[1]).all()
