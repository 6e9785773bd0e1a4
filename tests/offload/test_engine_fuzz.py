"""The engine against its plain model on larger cases: skipped layers, horizons that come and go, lossy steps."""

import numpy as np
import pytest
from reference_engine import Reference

from expertflow_jax.offload.clock import RealClock
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.offload.store import ExpertSizes

POLICIES = ["on_demand", "cache_moe", "expertflow", "oracle"]


class Fuzz:
    """One random model, link and trace, and what runs it: on an engine, or on the reference."""

    def __init__(self, seed):
        self.random = random = np.random.default_rng(seed)
        self.L, self.E = int(random.integers(1, 9)), int(random.integers(1, 17))
        self.slots, self.window = int(random.integers(1, self.L * self.E + 1)), int(random.integers(1, 4))
        self.policy = POLICIES[seed % len(POLICIES)]
        self.lossy = bool(random.random() < 0.3)
        steps = int(random.integers(1, 14))
        density_LE = random.random((self.L, self.E)) ** random.choice([0.5, 1.0, 3.0])
        runs_NL = random.random((steps, self.L)) < random.choice([1.0, 0.7])  # a layer that does not run asks for none
        self.runs_NL = runs_NL
        self.needed_NLE = (random.random((steps, self.L, self.E)) < density_LE) & runs_NL[..., None]
        seconds = float(random.choice([0.25, 1.0, 3.7]))
        self.link = LinkSpec(64 / seconds / 1e9, float(random.choice([0.0, 4e5])))
        self.attend, self.per_expert = float(random.choice([0.5, 2.0])), float(random.choice([0.0, 0.1]))
        kind = random.choice(["none", "truth", "noise", "now and then"])
        self.horizons = [self.horizon(kind, step) for step in range(steps)]
        self.updates = [
            (int(random.integers(self.L)), self.horizon("noise", step)) if random.random() < 0.3 else None
            for step in range(steps)
        ]

    def horizon(self, kind, step):
        if kind == "none" or (kind == "now and then" and self.random.random() < 0.5):
            return None
        truth = self.needed_NLE[step : step + int(self.random.integers(1, 4))].astype(np.float32)
        if kind == "truth" or self.policy == "oracle":
            return truth
        return np.clip(0.7 * truth + 0.3 * self.random.random(truth.shape), 0, 1).astype(np.float32)

    def engine(self):
        sizes = ExpertSizes(self.L, self.E, 64)
        return ExpertCacheEngine(sizes, self.slots, self.policy, self.link, window=self.window)

    def reference(self):
        seconds = self.link.seconds_on_link(64)
        return Reference(self.policy, self.slots, self.L, self.E, seconds, self.link.latency_seconds, self.window)

    def play(self, what, serve, spend, held):
        """Runs the trace; returns the rounds of every layer-step, and what the slots hold after every step."""
        log = []
        for step, needed_LE in enumerate(self.needed_NLE):
            what.begin_step(self.horizons[step])
            for layer in np.flatnonzero(self.runs_NL[step]).tolist():
                update = self.updates[step]
                if update is not None and update[0] == layer:
                    what.update_horizon(update[1])
                spend(self.attend)
                experts = np.flatnonzero(needed_LE[layer]).astype(np.int32)
                if self.lossy:
                    usable = what.usable(layer)
                    what.note_lossy(layer, experts, usable)
                    experts = experts[usable[experts]]
                log.append(serve(layer, experts))
            what.end_step()
            log.append(held())
        return log

    def play_engine(self, engine):
        def serve(layer, experts):
            rounds = []
            for group, _ in engine.rounds(layer, experts):
                rounds.append(group)
                engine.clock.spend(self.per_expert * len(group), "compute")
            return rounds

        spend = lambda seconds: engine.clock.spend(seconds, "compute")  # noqa: E731
        return self.play(engine, serve, spend, lambda: engine.pool.key_of.tolist())

    def play_reference(self, reference):
        serve = lambda layer, experts: reference.serve(layer, experts, lambda g: self.per_expert * len(g))  # noqa: E731
        return self.play(reference, serve, reference.spend, lambda: [slot["key"] for slot in reference.slots])


def check(seed):
    case = Fuzz(seed)
    engine, reference = case.engine(), case.reference()
    engine.warm_up()
    assert case.play_engine(engine) == case.play_reference(reference), seed
    stats = engine.stats()
    assert {name: stats[name] for name in reference.counts} == reference.counts, seed
    assert engine.clock.now() == reference.now, seed


@pytest.mark.parametrize("seed", range(24))
def test_a_few_larger_cases(seed):
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_many_larger_cases(block):
    for seed in range(1000 + 80 * block, 1000 + 80 * (block + 1)):
        check(seed)


@pytest.mark.slow
def test_lossy_steps_under_the_real_clock(keyed_store):
    """Whatever has arrived by then is used; nothing else is served, and what is missing comes in the end."""
    for seed in range(60):
        random = np.random.default_rng(seed)
        layers, experts = int(random.integers(1, 4)), int(random.integers(2, 9))
        slots = int(random.integers(1, layers * experts + 1))
        policy = POLICIES[seed % len(POLICIES)]
        link = ["direct", "emulated(0.001,50)"][seed % 2]
        store = keyed_store(layers, experts)
        with ExpertCacheEngine(store, slots, policy, link, RealClock(), window=1 + seed % 3) as engine:
            engine.warm_up()
            for _ in range(8):
                needed_LE = random.random((layers, experts)) < 0.5
                engine.begin_step(needed_LE[None].astype(np.float32))
                for layer in range(layers):
                    asked = np.flatnonzero(needed_LE[layer]).astype(np.int32)
                    usable = engine.usable(layer)
                    engine.note_lossy(layer, asked, usable)
                    served = []
                    for group, buffers in engine.rounds(layer, asked[usable[asked]]):
                        for expert, buffer in zip(group, buffers, strict=True):
                            np.testing.assert_array_equal(np.asarray(buffer[0]), layer * experts + expert)
                        served += group
                    assert sorted(served) == asked[usable[asked]].tolist()
                engine.end_step()
            stats = engine.stats()
            assert stats["urgent_transfers"] == stats["stall_seconds"] == 0
