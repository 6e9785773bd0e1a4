"""That caches without prefetch are the systems that they are named after, by the log of what they did."""

import math

import pytest
from event_traces import EXPERTS, LAYERS, costs, decoding, engine_of, one_layer, steps_of

from expertflow_jax.simulation.event_log import record


def evictions(log, choose):
    """Compares every eviction to `choose(layer, resident keys that may go)`, told who was asked for before."""
    resident = {}  # key: when it was last asked for, or came
    for event in log.events():
        if event in log.asks:
            asked = {event.layer * log.num_experts + expert for expert in event.experts}
            if not resident:
                resident = dict.fromkeys(event.held, -1)
            turn = event.turn
            resident.update(dict.fromkeys(asked & resident.keys(), turn))
            continue
        free = {key: used for key, used in resident.items() if key not in asked}
        assert event.evicted == choose(event.layer, free)
        del resident[event.evicted]
        resident[log.key(event)] = turn
    return len(log.moves)


def oldest(keys):
    return min(keys, key=lambda key: (keys[key], key))


def test_cache_moe_evicts_the_oldest_of_the_same_layer_alone():
    log = record(engine_of("cache_moe", LAYERS, EXPERTS, 3 * LAYERS), decoding(), costs())

    def choose(layer, free):
        return oldest({key: used for key, used in free.items() if key // EXPERTS == layer})

    assert evictions(log, choose) > 30
    assert {move.kind for move in log.moves} == {"urgent"}


def test_on_demand_evicts_the_oldest_of_all_layers():
    log = record(engine_of("on_demand", LAYERS, EXPERTS, 3 * LAYERS), decoding(), costs())
    assert evictions(log, lambda _, free: oldest(free)) > 30
    assert any(move.evicted // EXPERTS != move.layer for move in log.moves)


@pytest.mark.parametrize(("slots", "hits"), [(4, 0), (6, 12)])
def test_lru_over_fewer_slots_than_one_cycle_never_hits(slots, hits):
    engine = engine_of("on_demand", 3, 4, slots)
    record(engine, steps_of(3, 4, [[(2, 3), (2, 3), (2, 3)]] * 3), costs())
    assert engine.stats()["hits"] == hits  # all but those of the first step


def test_lfu_evicts_by_uses_since_the_expert_came():
    log = one_layer("lfu", 5, 3, [0, 0, 0, 1, 2, 3, 1, 4])
    # 0: three uses; 1 and 2: one each, 1 the older. When 1 comes back its one use of before is forgotten.
    assert [(move.expert, move.evicted) for move in log.moves] == [(3, 1), (1, 2), (4, 3)]
    assert [move.evicted for move in one_layer("on_demand", 5, 3, [0, 0, 0, 1, 2, 3, 1, 4]).moves] == [0, 2]


def test_class_lru_evicts_by_age_over_two_to_the_class():
    # At 10, when 3 is asked for: 0 has 4 uses, class 2, age 6; 1 has 2, class 1, age 4; 2 has 3, class 1, age 1.
    log = one_layer("class_lru(half_life=1e9)", 4, 3, [0, 0, 0, 0, 1, 1, 2, 2, 2, 3])
    uses, last = {0: 4, 1: 2, 2: 3}, {0: 4, 1: 6, 2: 9}
    scores = {expert: (10 - last[expert]) / 2 ** int(math.log2(uses[expert])) for expert in uses}
    assert scores == {0: 1.5, 1: 2.0, 2: 0.5}
    assert [move.evicted for move in log.moves] == [1]


def test_class_lru_remembers_uses_after_eviction_and_halves_them():
    asks = [0, 0, 0, 0, 1, 2, 1, 3, 0, 2, 4, 1, 3, 3, 0, 2, 4, 1, 1, 3] * 4
    log = one_layer("class_lru(half_life=12, classes=4)", 5, 3, asks)
    uses, last, resident, moves = [0.0] * 5, [0] * 5, {0, 1, 2}, []
    for now, ask in enumerate(asks, start=1):
        uses = [use / 2 ** (1 / 12) for use in uses]
        uses[ask] += 1
        if ask not in resident:
            classes = {e: min(3, math.floor(math.log2(max(uses[e], 1)))) for e in resident}
            heads = [
                min((e for e in resident if classes[e] == c), key=lambda e: last[e]) for c in set(classes.values())
            ]
            victim = max(heads, key=lambda e: ((now - last[e]) / 2 ** classes[e], -last[e]))
            moves.append((ask, victim))
            resident = resident - {victim} | {ask}
        last[ask] = now
    assert [(move.expert, move.evicted) for move in log.moves] == moves
    assert len(moves) > 20
    assert moves != [(move.expert, move.evicted) for move in one_layer("on_demand", 5, 3, asks).moves]
