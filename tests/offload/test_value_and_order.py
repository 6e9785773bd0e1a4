"""ExpertFlow's parts alone: the value, the lazy order against looking at everything, the options."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertflow_jax.errors import InputError
from expertflow_jax.offload.policies import make_policy
from expertflow_jax.offload.policies.lazy_order import LazyOrder
from expertflow_jax.offload.policies.value import first_uses, inverse_distances, lost, saved, values
from expertflow_jax.offload.slots import KEPT, SlotPool


def test_first_uses_share_out_the_chance():
    uses = np.random.default_rng(0).random((3, 2, 4)).astype(np.float32)
    first, never = first_uses(uses)
    np.testing.assert_allclose(first.sum(0) + never, 1, rtol=1e-5)
    np.testing.assert_allclose(first[2], (1 - uses[0]) * (1 - uses[1]) * uses[2], rtol=1e-5)


@pytest.mark.parametrize("asked", [-1, 0, 2])
def test_a_value_is_the_chance_of_each_first_use_over_its_distance(asked):
    random = np.random.default_rng(1)
    layers, experts = 3, 5
    first, never = first_uses(random.random((2, layers, experts)).astype(np.float32))
    frequency = random.uniform(0.05, 0.9, (layers, experts)).astype(np.float32)
    inverse = inverse_distances(2, layers)
    every = values(first, never, frequency, np.arange(layers)[:, None] - asked, inverse, layers)
    for layer in range(layers):
        one = values(first[:, layer], never[layer], frequency[layer], layer - asked, inverse, layers)
        np.testing.assert_array_equal(one, every[layer])
        for expert in range(experts):
            q, expected = frequency[layer, expert], 0.0
            for h in (0, 1):
                distance = h * layers + layer - asked
                if distance > 0:
                    expected += first[h, layer, expert] / distance
            # steps are used with chance q: (1 - q) / q of them pass first, after the end of the horizon
            expected += never[layer, expert] / (layers + layer - asked + layers / q)
            assert one[expert] == pytest.approx(expected, rel=1e-4)


def test_what_is_certain_has_beladys_order():
    uses = np.zeros((3, 2, 3), np.float32)
    uses[0, 1, 0] = uses[1, 0, 1] = uses[2, 1, 2] = 1  # next used 2, 3 and 6 layer-steps from the beginning
    first, never = first_uses(uses)
    value = values(
        first, never, np.full((2, 3), 0.1, np.float32), np.arange(2)[:, None] + 1, inverse_distances(3, 2), 2
    )
    assert [value[1, 0], value[0, 1], value[1, 2]] == pytest.approx([1 / 2, 1 / 3, 1 / 6])


def test_a_prefetch_saves_what_is_hidden_and_loses_its_victims_uses():
    first, _ = first_uses(np.array([[[0.5], [0.25]], [[0.5], [1.0]]], np.float32))
    assert saved(first, 1, 0, 0, hidden=0.1) == pytest.approx(0.25 * 0.1)  # one layer-step ahead
    assert saved(first, 1, 0, 0, hidden=7.0) == pytest.approx(0.25)
    assert saved(first, 0, 0, 1, hidden=0.1) == pytest.approx(0.25 * 0.1)  # in the next step, one layer-step ahead
    assert saved(first[:1], 0, 0, 1, hidden=0.1) == 0  # beyond the horizon
    assert lost(first, 1, 0, 0) == pytest.approx(1.0)
    assert lost(first, 0, 0, 1) == pytest.approx(0.25)


class Everything:
    """Values that grow by the factor D / (D - 1) at most and fall when their layer asks, and who is in which slot."""

    def __init__(self, seed):
        self.random = random = np.random.default_rng(seed)
        self.L, self.E = int(random.integers(1, 5)), int(random.integers(1, 6))
        self.pool = SlotPool(int(random.integers(1, self.L * self.E + 1)), self.L, self.E, 64)
        self.chance = random.random((self.L, self.E)).astype(np.float32)
        self.order = LazyOrder(self.pool, self.evaluate)
        self.order.likely = random.random((self.L, self.E)) < 0.8

    def evaluate(self, layer):
        """A chance over the layer-steps until the layer asks again."""
        until_L = (np.arange(self.L) - self.order.asked - 1) % self.L + 1
        value_LE = self.chance / until_L.astype(np.float32)[:, None]
        return value_LE if layer is None else value_LE[layer]

    def key(self, slot):
        return divmod(int(self.pool.key_of[slot]), self.E)

    def move(self, key, slot):
        evicted = self.pool.reserve(slot, key, 0)
        self.pool.publish(slot, int(self.pool.generation[slot]))
        self.order.moved(key, evicted)

    def check(self, opened):
        value_LE = self.evaluate(None)
        absent_LE = self.pool.slot_of.reshape(self.L, self.E) < 0
        wanted = np.where(opened & absent_LE & self.order.likely, value_LE, -1)
        key = self.order.highest()
        assert key == (int(wanted.argmax()) if wanted.max() > 0 else -1)
        free = [slot for slot in range(self.pool.num_slots) if self.pool.order[slot] != KEPT]
        held = [value_LE[self.key(slot)] for slot in free]
        lowest, slots = self.order.lowest_free()
        assert sorted(slots.tolist()) == [s for s, v in zip(free, held, strict=True) if v == min(held)]
        assert lowest == min(held, default=np.inf)
        worth = float(self.random.random())
        lowest, slots = self.order.lowest_free(worth, 1.1)
        if held and min(held) * np.float32(1.1) < worth:
            assert lowest == min(held)
        else:
            assert (lowest, len(slots)) == (np.inf, 0)
        return key


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_lazy_order_says_what_looking_at_everything_says(seed):
    case = Everything(seed)
    random, pool = case.random, case.pool
    for _ in range(3):
        case.order.restart(-1)
        opened = pool.slot_of.reshape(case.L, case.E) < 0
        case.check(opened)
        for layer in range(case.L):
            if random.random() < 0.2:
                continue  # it does not run
            case.chance[layer] = random.random(case.E)
            case.order.step(layer)
            opened = pool.slot_of.reshape(case.L, case.E) < 0
            for _ in range(int(random.integers(0, 4))):
                key = case.check(opened)
                if key < 0 or pool.slot_of[key] >= 0:
                    break
                _, slots = case.order.lowest_free()
                slot = pool.first_empty(slice(0, pool.num_slots))
                if slot < 0 and len(slots):
                    slot = int(slots[0])
                if slot >= 0:
                    case.move(key, slot)
                    opened.reshape(-1)[key] = False  # whether it stays or not
            case.check(opened)


def test_options_are_read_and_checked():
    policy = make_policy("expertflow(gain=1.5, likely=0.4)", memory=0.2)
    assert (policy.tuning.gain, policy.tuning.memory) == (1.5, 0.2)
    assert policy.tuning.least_chance(0.0) == policy.tuning.least_chance(1.0) == 0.4
    assert make_policy("expertflow").tuning.least_chance(0.2) == 0.75
    for text, message in [
        ("expertflow(gian=2)", "did you mean 'gain'"),
        ("expertflow(gain=0.5)", "gain=0.5: give a number of at least 1"),
        ("expertflow(memory=2)", "memory=2: give a number from 0 to 1"),
        ("expertflow(likely=((0.5, 0.3),))", "must begin at share 0"),
    ]:
        with pytest.raises(InputError, match=message):
            make_policy(text)
