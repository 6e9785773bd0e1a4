"""The engine against a plain model of it, and what must hold for any trace: safety, memory, counts, determinism."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_engine import Reference

from expertflow_jax.errors import InputError
from expertflow_jax.offload import policies
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.offload.slots import KEPT
from expertflow_jax.offload.store import ExpertSizes

POLICIES = ["on_demand", "cache_moe", "expertflow", "oracle"]  # of the plain model
OFFLOADING = [name for name in policies.POLICIES if name != "resident"]


@dataclasses.dataclass
class Case:
    """A random model, link and trace: needed bool [steps, L, E], horizons, seconds of compute."""

    num_layers: int
    num_experts: int
    slots: int
    window: int
    link: LinkSpec
    needed: np.ndarray
    horizons: list[np.ndarray | None]
    attend: float
    per_expert: float
    lossy: bool

    def engine(self, policy):
        sizes = ExpertSizes(self.num_layers, self.num_experts, 64)
        return ExpertCacheEngine(sizes, self.slots_for(policy), policy, self.link, window=self.window)

    def slots_for(self, policy):
        """As many as the case has, or the least that the policy takes."""
        return max(self.slots, policies.POLICIES[policy].least_slots(self.num_layers, self.num_experts))

    def next_router(self, step, layer):
        """What the next router says of two tokens, right more often than not: [2, E]."""
        random = np.random.default_rng(step * self.num_layers + layer)
        return random.random((2, self.num_experts)) + self.needed[step, layer + 1]


@st.composite
def cases(draw, lossy=None, least_slots=1):
    layers, experts = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.integers(1, 6))
    density = random.random((layers, experts)) ** draw(st.sampled_from([0.5, 1.0, 3.0]))
    needed = random.random((steps, layers, experts)) < density
    kind = draw(st.sampled_from(["none", "truth", "noise"]))
    horizons = []
    for step in range(steps):
        truth = needed[step : step + draw(st.integers(1, 3))].astype(np.float32)
        noisy = np.clip(0.7 * truth + 0.3 * random.random(truth.shape), 0, 1).astype(np.float32)
        horizons.append({"none": None, "truth": truth, "noise": noisy}[kind])
    seconds = draw(st.sampled_from([0.0, 0.25, 1.0, 3.7]))
    link = LinkSpec() if seconds == 0 else LinkSpec(64 / seconds / 1e9, draw(st.sampled_from([0.0, 4e5])))
    return Case(
        layers,
        experts,
        draw(st.integers(least_slots, layers * experts)),
        draw(st.integers(1, 3)),
        link,
        needed,
        horizons,
        draw(st.sampled_from([0.0, 0.5, 2.0])),
        draw(st.sampled_from([0.0, 0.1])),
        draw(st.booleans()) if lossy is None else lossy,
    )


def play(engine, case, on_round=None):
    """Runs the case's trace; returns what was served in which rounds, and the cache after every step."""
    log = []
    for step, (needed, horizon) in enumerate(zip(case.needed, case.horizons, strict=True)):
        if step % 3 == 0:
            engine.begin_batch()
        engine.begin_step(horizon)
        for layer in range(case.num_layers):
            engine.clock.spend(case.attend, "compute")
            experts = np.flatnonzero(needed[layer]).astype(np.int32)
            if case.lossy:
                usable = engine.usable(layer)
                engine.note_lossy(layer, experts, usable)
                experts = experts[usable[experts]]
            rounds = []
            for group, buffers in engine.rounds(layer, experts):
                rounds.append(group)
                if on_round is not None:
                    on_round(layer, group, buffers)
                engine.clock.spend(case.per_expert * len(group), "compute")
            if engine.watches_hidden and layer + 1 < case.num_layers:
                engine.observe_hidden(layer + 1, case.next_router(step, layer), 2)
            log.append(rounds)
        engine.end_step()
        log.append(engine.pool.key_of.tolist())
    return log


def play_reference(reference, case):
    log = []
    for needed, horizon in zip(case.needed, case.horizons, strict=True):
        reference.begin_step(horizon)
        for layer in range(case.num_layers):
            reference.spend(case.attend)
            experts = np.flatnonzero(needed[layer])
            if case.lossy:
                usable = reference.usable(layer)
                reference.note_lossy(layer, experts, usable)
                experts = experts[usable[experts]]
            log.append(reference.serve(layer, experts, lambda group: case.per_expert * len(group)))
        reference.end_step()
        log.append([slot["key"] for slot in reference.slots])
    return log


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_the_engine_does_what_a_plain_model_of_it_does(policy, case):
    engine = case.engine(policy)
    engine.warm_up()
    reference = Reference(
        policy,
        case.slots,
        case.num_layers,
        case.num_experts,
        case.link.seconds_on_link(64),
        case.link.latency_seconds,
        case.window,
    )
    assert play(engine, case) == play_reference(reference, case)
    stats = engine.stats()
    assert {name: stats[name] for name in reference.counts} == reference.counts
    assert engine.clock.now() == reference.now
    assert stats["stall_seconds"] == pytest.approx(reference.stall)


@pytest.mark.parametrize("policy", OFFLOADING)
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_counts_add_up_and_repeat_bit_for_bit(policy, case):
    runs = []
    for _ in range(2):
        engine = case.engine(policy)
        engine.warm_up()
        runs.append((play(engine, case), engine.stats()))
    assert runs[0] == runs[1]
    log, stats = runs[0]
    asked = int(case.needed.sum())
    transfers = stats["prefetches"] + stats["urgent_transfers"] + stats["background_transfers"]
    assert stats["hits"] + stats["late"] + stats["misses"] == asked
    assert stats["bytes_transferred"] == transfers * stats["expert_bytes"]
    assert stats["evictions"] <= transfers
    assert stats["wasted_prefetches"] <= stats["prefetches"]
    assert stats["corrections"] <= stats["misses"]
    assert stats["steps"] == len(case.needed)
    assert stats["layer_steps"] == len(case.needed) * case.num_layers
    assert stats["wall_seconds"] == pytest.approx(stats["compute_seconds"] + stats["stall_seconds"])
    if not case.lossy:
        served = [sorted(sum(rounds, ())) for rounds in log if not rounds or isinstance(rounds[0], tuple)]
        wanted = [np.flatnonzero(row).tolist() for step in case.needed for row in step]
        assert served == wanted
        assert stats["urgent_transfers"] == stats["misses"]
        assert stats["background_transfers"] == 0
    if case.lossy:
        assert stats["stall_seconds"] == 0
        assert stats["urgent_transfers"] == 0


@pytest.mark.parametrize("policy", OFFLOADING)
@settings(max_examples=25, deadline=None)
@given(case=cases())
def test_buffers_hold_the_expert_asked_for_and_memory_stays_within_the_slots(keyed_store, policy, case):
    store = keyed_store(case.num_layers, case.num_experts)
    most = 0

    def check(layer, group, buffers):
        nonlocal most
        for expert, buffer in zip(group, buffers, strict=True):
            assert (np.asarray(buffer[0]) == layer * case.num_experts + expert).all()
        most = max(most, sum(part.nbytes for b in engine.pool.buffers if b is not None for part in b))

    with ExpertCacheEngine(store, case.slots_for(policy), policy, case.link, window=case.window) as engine:
        engine.warm_up()
        play(engine, case, check)
        peak = engine.stats()["peak_slot_bytes"]
        assert most <= peak <= case.slots_for(policy) * store.expert_bytes


@pytest.mark.parametrize("policy", OFFLOADING)
@settings(max_examples=40, deadline=None)
@given(case=cases(lossy=False))
def test_an_expert_that_the_running_layer_needs_is_never_evicted(policy, case):
    engine = case.engine(policy)
    engine.warm_up()
    reserve = engine.pool.reserve

    def watched(slot, key, tick, *quantized):
        evicted = reserve(slot, key, tick, *quantized)
        assert evicted not in engine._traffic.needed
        return evicted

    engine.pool.reserve = watched
    play(engine, case)


@pytest.mark.parametrize("policy", OFFLOADING)
@settings(max_examples=20, deadline=None)
@given(case=cases())
def test_slots_that_a_computation_may_still_read_are_the_last_to_be_overwritten(policy, case):
    engine = case.engine(policy)
    engine.warm_up()
    engine._layer_step.reads_last = True  # as on a GPU under the real clock
    victim = engine.policy.victim

    def watched(key, urgent):
        free = (engine.pool.order[:-1] != KEPT).nonzero()[0].tolist()
        slot = victim(key, urgent)
        assert not set(engine._traffic.busy) & set(free) or urgent
        assert slot in (-1, *free)
        return slot

    engine.policy.victim = watched
    log = play(engine, case)
    served = [group for rounds in log if rounds and isinstance(rounds[0], tuple) for group in rounds]
    if not case.lossy:
        assert sum(len(group) for group in served) == case.needed.sum()


@settings(max_examples=20, deadline=None)
@given(case=cases())
def test_with_all_experts_in_slots_every_policy_only_hits(case):
    case.slots = case.num_layers * case.num_experts
    for policy in policies.POLICIES:
        if policy.startswith("pregated"):  # keeps nothing beyond its use
            continue
        engine = case.engine(policy)
        engine.warm_up()
        play(engine, case)
        stats = engine.stats()
        assert stats["hits"] == case.needed.sum()
        assert stats["hit_rate"] == 1.0
        assert stats["bytes_transferred"] == stats["stall_seconds"] == 0


@settings(max_examples=20, deadline=None)
@given(case=cases(lossy=False))
def test_rounds_left_unfinished_leave_a_working_engine(case):
    engine = case.engine("expertflow")
    engine.warm_up()
    engine.begin_step(None)
    for layer in range(case.num_layers):
        rounds = engine.rounds(layer, np.arange(case.num_experts))
        next(rounds)
        rounds.close()
        assert not len(engine.pool.kept(slice(0, engine.num_slots)))
    play(engine, case)


def test_what_a_lossy_layer_may_use_stays_until_it_is_computed():
    engine = ExpertCacheEngine(ExpertSizes(2, 4, 64), 4, "on_demand", LinkSpec(64e-9, 0))
    engine.warm_up()
    engine.begin_step(None)
    usable = engine.usable(0)
    assert usable.tolist() == [True, True, False, False]
    engine.note_lossy(0, np.arange(4), usable)
    engine.clock.spend(10, "compute")  # ample time for both missing ones, which may only displace layer 1's
    [(group, _)] = engine.rounds(0, np.array([0, 1]))
    assert group == (0, 1)
    stats = engine.stats()
    assert (stats["hits"], stats["misses"], stats["background_transfers"]) == (2, 2, 2)
    assert engine.usable(0).tolist() == [True] * 4


def test_the_stats_start_anew_and_the_cache_does_not():
    engine = ExpertCacheEngine(ExpertSizes(1, 3, 64), 1, "on_demand", LinkSpec(64e-9, 0))
    engine.warm_up()
    engine.begin_step(None)
    list(engine.rounds(0, np.array([2])))
    assert engine.stats()["stall_seconds"] == pytest.approx(1)
    engine.reset_stats()
    assert engine.stats()["wall_seconds"] == engine.stats()["misses"] == 0
    list(engine.rounds(0, np.array([2])))
    assert engine.stats()["hits"] == 1


@pytest.mark.parametrize("horizon", [np.zeros((1, 2, 3)), np.zeros((2, 4)), np.zeros((0, 2, 4))])
def test_a_horizon_of_another_model_is_refused(horizon):
    engine = ExpertCacheEngine(ExpertSizes(2, 4, 64), 4, "oracle")
    with pytest.raises(InputError, match=r"expected \[H, 2, 4\]"):
        engine.begin_step(horizon)


@pytest.mark.parametrize(
    ("slots", "policy", "link", "message"),
    [
        (0, "on_demand", "direct", "at least 1"),
        (7, "resident", "direct", "keeps all 8 experts"),
        (4, "expertfow", "direct", "did you mean 'expertflow'"),
        (4, "on_demand", "warp(9)", "use direct"),
    ],
)
def test_impossible_engines_are_refused(slots, policy, link, message):
    with pytest.raises(InputError, match=message):
        ExpertCacheEngine(ExpertSizes(2, 4, 64), slots, policy, link)


@pytest.mark.parametrize("policy", ["on_demand", "cache_moe"])  # others may find the newcomer worth less
def test_what_a_lossy_step_missed_comes_in_the_background(policy):
    engine = ExpertCacheEngine(ExpertSizes(2, 4, 64), 4, policy, LinkSpec(64e-9, 0))
    engine.warm_up()  # experts 0 and 1 of both layers
    engine.begin_step(None)
    for layer in (0, 1):
        usable = engine.usable(layer)
        engine.note_lossy(layer, np.array([1, 2]), usable)
        list(engine.rounds(layer, np.array([1])))
        engine.clock.spend(10, "compute")
    stats = engine.stats()
    assert stats["background_transfers"] == 2
    assert engine.usable(0)[2]
    assert engine.usable(1)[2]
