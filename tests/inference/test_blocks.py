"""Batches that go through the layers together give every logit the bits that it has alone, and share transfers."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_model import random_prompts, served, small_config

from expertflow_jax.errors import NumericError
from expertflow_jax.inference.members import Member, needed_by_super_step
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.offload.clock import VirtualClock
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.misses import make_miss_policy
from expertflow_jax.processing.batching import pad_prompts
from expertflow_jax.simulation.costs import ComputeCosts, Line

COSTS = ComputeCosts(Line(1e-4, 1e-6), Line(1e-5, 1e-7), 1e-6, Line(1e-5, 0), Line(1e-4, 1e-6), Line(1e-4, 1e-6))
CONFIG = small_config(mlp_only_layers=(1,))
STAGES, STORE = served(CONFIG)


def opened(policy, slots):
    engine = ExpertCacheEngine(STORE, slots, policy, "emulated(0.001,5)", VirtualClock())
    engine.warm_up()
    engine.reset_stats()
    session = InferenceSession(STAGES, engine, make_miss_policy("wait"), COSTS)
    session.records = []
    return session


def begun(session, count, seed):
    """A member about to read its prompts, and the lengths of these."""
    batch = pad_prompts(CONFIG, random_prompts(CONFIG, count, np.random.default_rng(seed)))
    x, deepstack = session.embed(batch)
    return Member.prefill(batch, session.start(batch, 4), x, deepstack), batch.lengths


def going_on(session, member):
    token = session.stages.embed(np.full((len(member.lengths), 1), 7, np.int32), None, None)
    return Member.decode(member.sequences, token, np.arange(len(member.lengths)) != 1)


@pytest.mark.parametrize("policy", ["on_demand", "cache_moe", "expertflow"])
def test_members_at_different_steps_keep_the_bits_of_steps_of_their_own(policy):
    alone = opened("resident", 24)
    (first, lengths), (second, others) = begun(alone, 3, 1), begun(alone, 2, 2)
    expected = [alone.last_logits(alone.super_step([first], None)[0], lengths)]
    expected.append(alone.last_logits(alone.super_step([going_on(alone, first)], None)[0], np.ones(3, np.int32)))
    expected.append(alone.last_logits(alone.super_step([second], None)[0], others))

    together = opened(policy, 16)
    (first, lengths), (second, others) = begun(together, 3, 1), begun(together, 2, 2)
    answers = [together.last_logits(together.super_step([first], None)[0], lengths)]
    hidden = together.super_step([going_on(together, first), second], None)
    answers.append(together.last_logits(hidden[0], np.ones(3, np.int32)))
    answers.append(together.last_logits(hidden[1], others))
    for logits_BxV, right_BxV in zip(answers, expected, strict=True):
        assert logits_BxV.tobytes() == right_BxV.tobytes()
    assert [record.super_step for record in together.records] == [1, 2, 2]
    assert [record.batch for record in together.records] == [1, 1, 2]
    union = together.records[1].needed | together.records[2].needed
    assert (needed_by_super_step(together.records)[1] == union).all()
    assert (first.sequences.lengths == lengths + np.array([1, 0, 1])).all()


@pytest.mark.parametrize("policy", ["on_demand", "cache_moe"])
def test_an_expert_travels_once_per_super_step(policy):
    session = opened(policy, 2)
    members = [begun(session, 4, seed)[0] for seed in range(4)]
    session.super_step(members, None)
    asked = int(needed_by_super_step(session.records)[0].sum())
    stats = session.engine.stats()
    assert stats["hits"] + stats["late"] + stats["misses"] == asked
    assert stats["bytes_transferred"] <= asked * STORE.expert_bytes
    separate = opened(policy, 2)
    for seed in range(4):
        separate.super_step([begun(separate, 4, seed)[0]], None)
    assert stats["bytes_transferred"] < separate.engine.stats()["bytes_transferred"] / 2
    spent, alone = stats["compute_seconds"], separate.engine.stats()["compute_seconds"]
    assert spent == pytest.approx(alone, rel=0.2)  # every batch's rows are still computed in calls of their own


def test_the_member_whose_numbers_are_none_is_found():
    session = opened("on_demand", 4)
    (good, lengths), (bad, others) = begun(session, 2, 1), begun(session, 2, 2)
    bad = Member(bad.phase, bad.sequences, bad.x * np.inf, bad.positions, bad.lengths, bad.visual)
    hidden = session.super_step([good, bad], None)
    assert np.isfinite(session.last_logits(hidden[0], lengths)).all()
    with pytest.raises(NumericError, match="first in the input embeddings"):
        session.last_logits(hidden[1], others)
