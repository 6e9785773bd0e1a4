"""Policies and miss policies from a file outside the package, and what the engine tells a policy."""

import textwrap

import numpy as np
import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.misses import make_miss_policy
from expertflow_jax.offload.policies import make_policy
from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.store import ExpertSizes
from expertflow_jax.simulation.costs import ComputeCosts, Line
from expertflow_jax.simulation.replay import ReplayStep, replay, true_horizons
from expertflow_jax.simulation.synthetic import synthetic_steps

NOTHING = Line(0.0, 0.0)
COSTS = ComputeCosts(Line(0.5e-3, 0), Line(0.25e-3, 0), 0.03e-3, NOTHING, NOTHING, NOTHING, route=Line(1e-4, 0))

OUTSIDE = '''
"""Two layers' worth of ideas that the package does not have."""

import numpy as np

from expertflow_jax.offload.misses import MissPolicy
from expertflow_jax.offload.policies.base import CachePolicy
from expertflow_jax.offload.slots import KEPT


class MostTokens(CachePolicy):
    """Evicts the expert that the fewest tokens have chosen so far; older steps fade."""

    name = "most_tokens"

    def __init__(self, fading: float = 0.9):
        self.fading = fading

    def attach(self, slots):
        super().attach(slots)
        self.tokens_LE = np.zeros((slots.num_layers, slots.num_experts))

    def begin_step(self, horizon):
        self.tokens_LE *= self.fading

    def observe(self, layer, counts):
        self.tokens_LE[layer] += counts

    def victim(self, key, urgent):
        slots = self.slots
        free = np.flatnonzero(slots.order[:-1] != KEPT)
        if not len(free):
            return -1
        return int(free[self.tokens_LE.reshape(-1)[slots.key_of[free]].argmin()])


class KeepTop(MissPolicy):
    """Drops what is absent, but never a token's first choice... which is then its own: nothing runs in its place."""

    name = "keep_top"
    lossless = False

    def __init__(self, weight: float = 1.0):
        self.weight = weight

    def resolve(self, expert_ids, weights, router_probs, usable):
        here = (expert_ids >= 0) & usable[np.maximum(expert_ids, 0)]
        here[:, 0] = expert_ids[:, 0] >= 0
        return np.where(here, expert_ids, -1), np.where(here, weights * self.weight, 0).astype(weights.dtype)
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    (tmp_path / "ideas_of_ours.py").write_text(textwrap.dedent(OUTSIDE))
    monkeypatch.syspath_prepend(tmp_path)


def steps_of(seed, **sizes):
    return synthetic_steps(seed, num_layers=4, num_experts=16, top_k=2, batches=3, batch_size=4, **sizes)


def test_a_policy_from_outside_runs_an_engine(outside):
    rates = {}
    for policy in ("on_demand", "ideas_of_ours:MostTokens", "ideas_of_ours:MostTokens(fading=0.5)"):
        engine = ExpertCacheEngine(ExpertSizes(4, 16, 10**6), 24, policy, "emulated(8,0)")
        engine.warm_up()
        stats = replay(engine, steps_of(1, decode_steps=12), COSTS)
        assert stats["hits"] + stats["late"] + stats["misses"] > 0
        rates[stats["policy"]] = stats["hit_rate"]
    assert rates["most_tokens"] > rates["on_demand"]


def test_a_miss_policy_from_outside_runs_an_engine(outside):
    miss_policy = make_miss_policy("ideas_of_ours:KeepTop(weight=0.5)")
    engine = ExpertCacheEngine(ExpertSizes(1, 4, 64), 2, "on_demand", "emulated(1,0)")
    engine.warm_up()
    engine.begin_step(None)
    ids_NK, weights_NK = np.array([[0, 3], [2, 1]], np.int32), np.full((2, 2), 0.5, np.float32)
    usable = engine.usable(0)
    engine.note_lossy(0, np.arange(4), usable, np.ones(4, np.int32))
    new_ids, new_weights = miss_policy.resolve(ids_NK, weights_NK, weights_NK, usable)
    assert new_ids.tolist() == [[0, -1], [2, 1]]
    assert new_weights.tolist() == [[0.25, 0], [0.25, 0.25]]
    served = [expert for group, _ in engine.rounds(0, np.array([0, 1, 2])) for expert in group]
    assert sorted(served) == [0, 1, 2]


def test_what_is_no_policy_is_refused_in_one_line(outside):
    with pytest.raises(InputError, match="not a CachePolicy; subclass expertflow_jax"):
        make_policy("ideas_of_ours:KeepTop")
    with pytest.raises(InputError, match="not a MissPolicy"):
        make_miss_policy("ideas_of_ours:MostTokens")
    with pytest.raises(InputError, match="miss policy 'wiat' does not exist; did you mean 'wait'"):
        make_miss_policy("wiat")


class Listener(CachePolicy):
    """Writes down what it is told."""

    name = "listener"

    def __init__(self):
        self.heard = []

    def begin_batch(self):
        self.heard.append("batch")

    def begin_step(self, horizon):
        self.heard.append(("step", horizon))

    def observe(self, layer, counts):
        self.heard.append((layer, counts.tolist()))


def test_a_policy_hears_token_counts_and_where_batches_begin():
    rows = np.array([[3, 0, 1], [0, 2, 2]])
    engine = ExpertCacheEngine(ExpertSizes(2, 3, 64), 3, Listener(), "emulated(1,0)")
    replay(engine, [ReplayStep(4, rows, begins=True), ReplayStep(4, rows)], COSTS)
    step = [("step", None), (0, [3, 0, 1]), (1, [0, 2, 2])]
    assert engine.policy.heard == ["batch", *step, *step]
    engine.policy.heard.clear()
    list(engine.rounds(0, np.array([0, 2])))  # where only the set is known
    engine.note_lossy(1, np.array([1]), engine.usable(1), np.array([0, 7, 0], np.int32))
    assert engine.policy.heard == [(0, [1, 0, 1]), (1, [0, 7, 0])]


class NextRouter(CachePolicy):
    """Fetches what the next layer's router would choose on this hidden state (2312.17238), the likeliest first."""

    name = "next_router"
    prefetches = True
    forecast = "hidden"

    def attach(self, slots):
        super().attach(slots)
        self.queue = []

    def begin_step(self, horizon):
        assert horizon is None
        self.queue = []

    def observe_hidden(self, layer, router_probs, top_k):
        best_E = np.sort(router_probs, axis=0)[-1]
        chosen = np.unique(np.argsort(-router_probs, axis=1)[:, :top_k])
        self.queue = (layer * self.num_experts + chosen[np.argsort(-best_E[chosen], kind="stable")]).tolist()

    def next_prefetch(self):
        return next((key for key in self.queue if self.slots.slot_of[key] < 0), -1)


def with_hidden(steps):
    """The same steps, where a layer's hidden state tells what the next one uses: probabilities [L, tokens, E]."""
    known = []
    for step in steps:
        probs_LNE = np.zeros((len(step.rows), step.tokens, step.rows.shape[1]), np.float32)
        for layer, rows in enumerate(step.rows):
            tokens = np.repeat(np.arange(len(rows)), rows)  # expert of each row, dealt out to tokens in turn
            for place, expert in enumerate(tokens.tolist()):
                probs_LNE[layer, place % step.tokens, expert] += 0.5
        known.append(type(step)(step.tokens, step.rows, None, step.begins, probs_LNE))
    return known


def run(policy, steps, link="emulated(8,0)", slots=16):
    engine = ExpertCacheEngine(ExpertSizes(4, 16, 10**6), slots, policy, link)
    engine.warm_up()
    return replay(engine, steps, COSTS)


def test_what_the_next_router_says_is_fetched_ahead_and_paid_for():
    steps = steps_of(2, prompt_tokens=0, decode_steps=8)
    plain, knowing = run("on_demand", steps), run(NextRouter(), with_hidden(steps))
    assert knowing["prefetches"] > 0
    assert knowing["misses"] < 0.7 * plain["misses"]
    assert run("on_demand", with_hidden(steps)) == plain  # nobody is asked, nothing is paid
    assert knowing["corrections"] < knowing["misses"]  # foreseen, but late; the first layer's were not foreseen


def test_asking_the_next_router_takes_time():
    steps = with_hidden(steps_of(2, prompt_tokens=0, decode_steps=8))
    plain, knowing = (run(policy, steps, "direct") for policy in ("on_demand", NextRouter()))
    assert plain["stall_seconds"] == knowing["stall_seconds"] == 0  # transfers take no time: experts come in one round
    asked = 3 * len(steps)  # about every layer but the first
    rounds = (knowing["compute_seconds"] - plain["compute_seconds"] - asked * 1e-4) / 0.25e-3
    assert rounds == pytest.approx(round(rounds))


def test_a_horizon_given_within_a_step_is_as_good_as_one_given_before_it():
    steps = true_horizons(steps_of(3, prompt_tokens=6, decode_steps=6), 4)
    for policy in ("expertflow", "oracle"):
        outcomes = []
        for late in (False, True):
            engine = ExpertCacheEngine(ExpertSizes(4, 16, 10**6), 20, policy, "emulated(8,0)")
            engine.warm_up()
            served = []
            for step in steps:
                engine.begin_step(None if late else step.horizon)
                if late:
                    engine.update_horizon(step.horizon)
                for layer, rows in enumerate(step.rows):
                    engine.clock.spend(1e-3, "compute")
                    served += [group for group, _ in engine.rounds(layer, np.flatnonzero(rows))]
                    engine.update_horizon(step.horizon)  # again: nothing new
                engine.end_step()
            outcomes.append((served, engine.stats()["corrections"]))
        assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("policy", ["expertflow", "oracle"])
def test_a_horizon_within_a_step_changes_what_travels(policy):
    engine = ExpertCacheEngine(ExpertSizes(2, 4, 64), 2, policy, "emulated(1,0)")
    horizon = np.zeros((1, 2, 4), np.float32)
    horizon[0, 1, 2] = 1
    engine.begin_step(horizon)
    engine.clock.spend(1.0, "compute")
    list(engine.rounds(0, np.array([], np.int32)))
    assert engine.pool.slot_of[4 + 2] >= 0
    better = np.zeros((2, 2, 4), np.float32)
    better[0, :, 3] = 1  # of layer 0, which has run, nothing more is fetched in this step
    engine.update_horizon(better)
    engine.clock.spend(1.0, "compute")
    engine.end_step()
    assert engine.pool.slot_of[4 + 3] >= 0
    assert engine.pool.slot_of[3] < 0
    with pytest.raises(InputError, match="expected"):
        engine.update_horizon(np.zeros((1, 2, 5)))


class Ring(CachePolicy):
    """Sections of E slots, one per layer in turn."""

    name = "ring"

    def home(self, layer):
        section = layer % (self.slots.num_slots // self.num_experts)
        return slice(section * self.num_experts, (section + 1) * self.num_experts)

    def attach(self, slots):
        super().attach(slots)
        self.came = []

    def moved(self, key, evicted):
        self.came.append((key, evicted))


def test_the_cache_starts_within_homes_and_the_policy_hears_of_it():
    engine = ExpertCacheEngine(ExpertSizes(5, 3, 64), 6, Ring(), "emulated(1,0)")
    engine.warm_up()
    assert engine.pool.key_of.tolist() == [0, 1, 2, 3, 4, 5]  # layers 0 and 1 whole, none of the others
    assert engine.policy.came == [(key, -1) for key in range(6)]
    misplaced = Ring()
    misplaced.initial_keys = lambda: np.array([3, 1, 2, 0, 4, 5], np.int32)
    engine = ExpertCacheEngine(ExpertSizes(5, 3, 64), 6, misplaced, "emulated(1,0)")
    with pytest.raises(RuntimeError, match="policy ring: initial_keys gives slot 0 to expert key 3"):
        engine.warm_up()
