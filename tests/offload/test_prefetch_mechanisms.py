"""That policies which fetch ahead are the systems that they are named after, by the log of what they did."""

import numpy as np
import pytest
from event_traces import EXPERTS, LAYERS, costs, decoding, engine_of, steps_of

from expertflow_jax.errors import InputError
from expertflow_jax.offload.policies import make_policy
from expertflow_jax.routing.trace import RoutingTrace
from expertflow_jax.simulation.event_log import record
from expertflow_jax.simulation.replay import ReplayStep


def wrong_guesses(steps):
    """The same steps without the last two experts, which are all that the next router ever wants."""
    probs_LNE = np.zeros((LAYERS, 1, EXPERTS), np.float32)
    probs_LNE[..., -2:] = 0.5
    used_E = np.arange(EXPERTS) < EXPERTS - 2
    return [ReplayStep(1, step.rows * used_E, None, step.begins, probs_LNE) for step in steps]


def test_speculation_that_is_wrong_leaves_every_cache_as_it_was():
    steps = wrong_guesses(decoding())
    guessing = record(
        engine_of("speculative(staging=2)", LAYERS, EXPERTS, 3 * LAYERS + 2, 0.1), steps, costs(expert=1.0)
    )
    plain = record(engine_of("cache_moe", LAYERS, EXPERTS, 3 * LAYERS, 0.1), steps, costs(expert=1.0))
    guesses = [move for move in guessing.moves if move.kind == "prefetch"]
    assert len(guesses) > 30
    assert {move.evicted % EXPERTS for move in guesses if move.evicted >= 0} == {EXPERTS - 2, EXPERTS - 1}
    others = [(move.layer, move.expert, move.evicted) for move in guessing.moves if move.kind != "prefetch"]
    assert others == [(move.layer, move.expert, move.evicted) for move in plain.moves]


def test_a_guess_enters_its_layers_cache_when_it_is_used_in_place_of_the_oldest():
    # caches: experts 0 and 1 of both layers (keys 0, 1, 4, 5); two staging slots
    asks = [[(0,), (0,)], [(0,), (2,)], [(0,), (0,)], [(0,), (2,)]]
    hidden = [[(), (2,)], [(), (2,)], [(), (3, 1)], [(), (3, 1)]]
    engine = engine_of("speculative(staging=2)", 2, 4, 6, 0.1)
    log = record(engine, steps_of(2, 4, asks, hidden), costs(expert=1.0))
    seen = [(move.kind, log.key(move), move.evicted) for move in log.moves]
    # 6 waits beside the cache, is used in the second step and takes the place of 5, whose slot becomes a staging slot;
    # 7 goes to the empty one. 5 is still there, guessed again, and needs no transfer.
    assert seen == [("prefetch", 6, -1), ("prefetch", 7, -1)]
    assert log.asks[1].held == {0, 1, 4, 5, 6}
    assert engine.stats()["misses"] == 0
    assert {4, 6} <= set(engine.pool.key_of.tolist())


def test_speculation_asks_about_the_next_layer_only_and_its_own_misses_come_first():
    steps = wrong_guesses(decoding())
    log = record(engine_of("speculative", LAYERS, EXPERTS, 2 * LAYERS + 4, 0.4), steps, costs(expert=0.5))
    for first, second in zip(log.asks, log.asks[1:], strict=False):
        between = log.between(first, second)
        prefetched = [move.layer for move in between if move.kind == "prefetch"]
        assert set(prefetched) <= {first.layer + 1}
        kinds = [move.kind == "prefetch" for move in between]
        assert kinds == sorted(kinds)


@pytest.mark.parametrize("seconds", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("sections", [2, 3])
def test_the_ring_moves_every_expert_of_every_layer_in_turn(sections, seconds):
    engine = engine_of("se_moe", LAYERS, EXPERTS, sections * EXPERTS, seconds)
    log = record(engine, decoding(), costs(expert=1.0))
    keys = [log.key(move) for move in log.moves]
    first = sections * EXPERTS
    for place, (move, key) in enumerate(zip(log.moves, keys, strict=True)):
        turn = (first + place) // EXPERTS
        assert key // EXPERTS == turn % LAYERS  # section after section, in the order of layers
        assert move.evicted // EXPERTS == (turn - sections) % LAYERS  # into the place of the one that was released
    whole = len(keys) // EXPERTS
    for section in range(whole):
        assert len(set(keys[section * EXPERTS : (section + 1) * EXPERTS])) == EXPERTS  # all of it, whatever is routed
    assert whole >= len(log.asks) - sections - 1


def test_the_rings_next_section_is_under_way_while_the_layer_computes():
    engine = engine_of("se_moe", LAYERS, EXPERTS, 2 * EXPERTS, 0.1)
    log = record(engine, decoding(), costs(attend=1.0, expert=1.0))
    for ask, following in zip(log.asks[1:], log.asks[2:], strict=False):
        span = [move for move in log.moves if move.start < ask.end and move.end > ask.start - 1.0]
        assert {move.layer for move in span} <= {following.layer, (following.layer + 1) % LAYERS, ask.layer}
        assert any(move.layer == following.layer for move in span)
        released = [move for move in log.between(ask, following) if move.layer not in (ask.layer, following.layer)]
        assert all(move.start >= ask.end for move in released)


def test_no_layer_of_the_ring_is_through_before_its_section_is_whole():
    engine = engine_of("se_moe", LAYERS, EXPERTS, 2 * EXPERTS, 5.0)
    log = record(engine, decoding(), costs())
    for ask in log.asks[3:-1]:
        arrivals = [move.end for move in log.moves if move.layer == ask.layer and move.end <= ask.end]
        assert len(arrivals) % EXPERTS == 0
        assert arrivals


def test_a_ring_of_less_than_two_sections_is_refused():
    with pytest.raises(InputError, match="se_moe needs two sections of 8 slots, but there are 15"):
        engine_of("se_moe", LAYERS, EXPERTS, 15)


def test_the_double_buffer_takes_exactly_what_the_gate_foresees_and_keeps_nothing():
    asks = [[(0, 1), (2, 3), (4, 5)]] * 3
    hidden = [[(), (2, 3), (4, 7)]] * 3
    engine = engine_of("pregated_forecast", 3, 8, 16, 0.1)
    log = record(engine, steps_of(3, 8, asks, hidden), costs(expert=1.0))
    step = [
        *[("correction", 0, 0), ("correction", 0, 1)],  # no gate stands before the first layer
        *[("prefetch", 1, 2), ("prefetch", 1, 3)],
        *[("prefetch", 2, 4), ("prefetch", 2, 7), ("correction", 2, 5)],
    ]
    kinds = [("correction" if move.kind == "urgent" else move.kind, move.layer, move.expert) for move in log.moves]
    assert kinds == step * 3  # every step moves it all again
    assert {move.evicted for move in log.moves} == {-1}
    for ask in log.asks:
        assert {key // 8 for key in ask.held} <= {ask.layer}


def test_a_correction_overtakes_queued_prefetches():
    horizon = np.zeros((1, 2, 4), np.float32)
    horizon[0, 0, 0] = horizon[0, 1] = 1
    rows_LE = np.array([[1, 0, 0, 1], [1, 1, 1, 1]])  # expert 3 of layer 0 was not foreseen
    engine = engine_of("expertflow", 2, 4, 8)
    engine.pool.clear()
    log = record(engine, [ReplayStep(1, rows_LE, horizon)], costs(attend=1.5, expert=1.0))
    correction = next(move for move in log.moves if move.kind == "correction")
    assert (correction.layer, correction.expert) == (0, 3)
    queued = [move for move in log.moves if move.kind == "prefetch" and move.start >= log.asks[0].start]
    assert [move.layer for move in queued] == [1] * len(queued)
    assert queued
    assert all(correction.end <= move.start for move in queued)
    before = [move for move in log.moves if move.start < correction.start]
    assert correction.start == max(move.end for move in before)  # as soon as the link was free


def paths(rows_LE):
    """A sequence of as many tokens as a row has uses, one expert of each layer per token: int [T, L, 1]."""
    return np.stack([np.repeat(np.arange(len(row)), row) for row in rows_LE], 1)[..., None]


SEEN = np.array([[4, 0, 0], [3, 1, 0], [0, 3, 1]])
OTHER = np.array([[0, 0, 4], [0, 0, 4], [4, 0, 0]])


@pytest.fixture
def traces(tmp_path):
    path = tmp_path / "requests.npz"
    RoutingTrace(np.stack([paths(OTHER), paths(SEEN)]), 3).save(path)
    return path


def test_moe_infinity_fetches_by_probability_and_distance_and_evicts_by_its_formula(traces):
    policy = make_policy("moe_infinity", traces=str(traces))
    engine = engine_of(policy, 3, 3, 5, 0.1)  # 0, 1 of layers 0 and 1, and 0 of layer 2
    assert policy.collection.tolist() == [OTHER.tolist(), SEEN.tolist()]
    log = record(engine, [ReplayStep(4, np.array([[4, 0, 0], [0, 0, 0], [0, 0, 0]]))], costs(expert=1.0))
    # the row of layer 0 is SEEN's: p = (3/4, 1/4, 0) in layer 1 and (0, 3/4, 1/4) in layer 2
    expected = np.zeros((3, 3))
    expected[1] = np.array([3 / 4, 1 / 4, 0]) * (1 - 1 / 3)
    expected[2] = np.array([0, 3 / 4, 1 / 4]) * (1 - 2 / 3)
    order = [(1, 0), (2, 1), (1, 1), (2, 2)]
    assert sorted(np.argwhere(expected > 0).tolist(), key=lambda place: -expected[tuple(place)]) == [*map(list, order)]
    assert [(move.layer, move.expert) for move in log.moves[:2]] == [(2, 1), (2, 2)]  # (1, 0) and (1, 1) are there
    # of those not foreseen (1, 0) and (1, 1) are safe; (epsilon) (1 - i / L) is least in the last layer, then the first
    assert [move.evicted for move in log.moves[:2]] == [2 * 3 + 0, 0 * 3 + 1]


def test_moe_infinity_learns_requests_and_replaces_the_most_similar(traces):
    policy = make_policy("moe_infinity", traces=str(traces), capacity=2)
    engine = engine_of(policy, 3, 3, 4)
    like_seen = np.array([[5, 0, 0], [2, 2, 0], [0, 2, 2]])
    for rows_LE in (like_seen, OTHER):
        record(engine, [ReplayStep(4, rows_LE, begins=True)], costs())
    assert policy.collection.tolist() == [OTHER.tolist(), like_seen.tolist()]
    with pytest.raises(InputError, match="traces of 3 layers of 3 experts do not fit a model of 2 layers of 4"):
        engine_of(make_policy("moe_infinity", traces=str(traces)), 2, 4, 4)
