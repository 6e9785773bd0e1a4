"""Blocks whose members come and go: the bits, the answers and their order are those of one batch after another."""

import dataclasses
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_model import random_prompts, served, small_config

from expertflow_jax import OffloadedModel
from expertflow_jax.errors import InputError
from expertflow_jax.inference.forecasting import NoForecast
from expertflow_jax.inference.generation import BatchRequest, Choosing, generate_batches
from expertflow_jax.inference.members import Member, needed_by_super_step
from expertflow_jax.inference.memory import RequestSize, best_block, plan_request
from expertflow_jax.inference.predicted import PredictedForecast
from expertflow_jax.inference.scoring import score_batches
from expertflow_jax.inference.served import make_forecaster, open_session, serve
from expertflow_jax.offload.policies import POLICIES
from expertflow_jax.offload.variant import RESIDENT, Variant
from expertflow_jax.predictor import Predictor, PredictorConfig, RoutingPathPredictor
from expertflow_jax.predictor.forecast import combine_batches, wants_nearly_all
from expertflow_jax.processing.batching import pad_prompts
from expertflow_jax.simulation.costs import ComputeCosts, Line

COSTS = ComputeCosts(Line(1e-4, 1e-6), Line(1e-5, 1e-7), 1e-6, Line(1e-5, 0), Line(1e-4, 1e-6), Line(1e-4, 1e-6))
CONFIG = small_config()
LINK = "emulated(0.001,5)"
EXPERTS = 24
GOLDENS = Path(__file__).parents[1] / "goldens" / "models"


class Model:
    stages, store = served(CONFIG)


def predictor():
    text = CONFIG.text
    sizes = (text.hidden_size, len(text.moe_layers), text.num_experts, text.num_experts_per_tok)
    shape = PredictorConfig(*sizes, width=16, depth=1, heads=2, hidden=16)
    return Predictor(shape, nnx.state(RoutingPathPredictor(shape, rngs=nnx.Rngs(1))))


PREDICTOR = predictor()


def requests(seed, sizes, longest=4):
    random = np.random.default_rng(seed)
    first = 0
    for size in sizes:
        limits = random.integers(1, longest + 1, size).tolist()
        yield BatchRequest(random_prompts(CONFIG, size, random), limits, range(first, first + size))
        first += size


def run(variant, slots, seed, sizes, batches_per_block, truth=None, **callbacks):
    """(token ids, digest) of every prompt, what each super-step asked for, the engine's counts."""
    session = open_session(Model, variant, slots, LINK, costs=COSTS)
    session.records = []
    forecaster = make_forecaster(session, variant, PREDICTOR, truth)
    choosing = Choosing((0, 7), **callbacks)
    batches = generate_batches(
        session, requests(seed, sizes), forecaster, choosing, batch_size=3, batches_per_block=batches_per_block
    )
    answers = [(answer.token_ids, answer.logits_digest) for answer in itertools.chain.from_iterable(batches)]
    with session.engine:
        return answers, needed_by_super_step(session.records), session.engine.stats()


@settings(max_examples=8, deadline=None)
@given(
    policy=st.sampled_from([name for name, policy in POLICIES.items() if policy.lossless]),
    fraction=st.floats(0.67, 1.0),
    batches_per_block=st.integers(2, 5),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=6),
    seed=st.integers(0, 20),
)
def test_answers_and_bits_do_not_depend_on_how_many_batches_run_at_once(
    policy, fraction, batches_per_block, sizes, seed
):
    expected, _, _ = run(RESIDENT, EXPERTS, seed, sizes, 1)
    variant, truth = Variant.of(policy), None
    if variant.forecast == "truth":
        same, truth, _ = run(RESIDENT, EXPERTS, seed, sizes, batches_per_block)
        assert same == expected
    answers, needed, stats = run(variant, int(fraction * EXPERTS), seed, sizes, batches_per_block, truth)
    assert answers == expected
    assert stats["steps"] == len(needed)
    assert stats["hits"] + stats["late"] + stats["misses"] == np.sum(needed)  # each expert once per super-step


@pytest.mark.parametrize("policy", ["on_demand", "expertflow"])
def test_blocks_share_transfers_and_super_steps(policy):
    sizes = [3] * 8
    _, alone, one = run(Variant.of(policy), 8, 1, sizes, 1)
    _, together, four = run(Variant.of(policy), 8, 1, sizes, 4)
    assert four["steps"] <= len(alone) / 3
    assert len(together) == four["steps"]
    assert four["bytes_transferred"] < 0.6 * one["bytes_transferred"]
    assert four["wall_seconds"] < one["wall_seconds"] / 1.3


def test_a_batch_that_has_ended_makes_room_and_nobody_waits():
    """Batches of 1, 5, 1 and 1 tokens, two at a time: the second runs on while the others take turns beside it."""
    session = open_session(Model, RESIDENT, costs=COSTS)
    session.records = []
    prompts = random_prompts(CONFIG, 4, np.random.default_rng(0))
    limits = [1, 5, 1, 1]
    work = [BatchRequest([prompt], [limit], [n]) for n, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))]
    ended = []
    choosing = Choosing((), on_end=ended.append)
    with session.engine:
        answers = list(generate_batches(session, work, NoForecast(), choosing, batches_per_block=2))
    assert [len(answer.token_ids) for [answer] in answers] == limits
    assert ended == [0, 2, 3, 1]
    steps = {(record.super_step, record.batch) for record in session.records}
    assert steps == {(1, 1), (1, 2), (2, 2), (2, 3), (3, 2), (3, 4), (4, 2), (5, 2)}


def test_scores_do_not_depend_on_blocks():
    prompts = random_prompts(CONFIG, 7, np.random.default_rng(3))
    groups = [(prompts[:3], ()), (prompts[3:6], ()), (prompts[6:], ())]
    digests = []
    for batches_per_block in (1, 2):
        with serve(Model, Variant.of("cache_moe"), 9, LINK, costs=COSTS) as session:
            scored = score_batches(session, groups, NoForecast(), batch_size=3, batches_per_block=batches_per_block)
            digests.append([(s.logits_digest, s.nats.tobytes()) for s in itertools.chain.from_iterable(scored)])
    assert digests[0] == digests[1]


@pytest.mark.slow
@pytest.mark.parametrize("golden", ["switch_small_capacity", "base"])
def test_the_door_answers_alike_with_any_block(golden):
    """Of an encoder-decoder, members at different phases go through different layers."""
    random = np.random.default_rng(5)
    prompts = [random.integers(5, 48, random.integers(2, 9)).tolist() for _ in range(7)]
    found = []
    for batches_per_block in (1, 3):
        with OffloadedModel.from_pretrained(
            str(GOLDENS / golden), policy="cache_moe", cache_fraction=0.5, max_batch_size=2, max_tokens=48,
            batches_per_block=batches_per_block,
        ) as model:  # fmt: skip
            found.append([answer.token_ids for answer in model.generate(prompts, max_new_tokens=5)])
            assert model.stats()["batches_per_block"] == batches_per_block
            with pytest.raises(InputError, match=f"the memory plan holds {batches_per_block}; load with"):
                model.generate(prompts, batches_per_block=batches_per_block + 1)
            assert model.generate(prompts[:3], max_new_tokens=5, batch_size=1)[2].token_ids == found[0][2]
    assert found[0] == found[1]


def test_where_nearly_all_is_wanted_no_predictor_runs():
    session = open_session(Model, Variant.of("expertflow"), 8, LINK, costs=COSTS)
    few, many = [3] * 2, [8] * 4
    for sizes, certain in ((few, False), (many, True)):
        forecaster = PredictedForecast(PREDICTOR, session.engine.clock, COSTS)
        session.engine.reset_stats()
        tokens = sum(len(p.input_ids) for request in requests(2, sizes, longest=1) for p in request.prompts)
        assert wants_nearly_all(tokens, 2, 8) == certain
        list(generate_batches(session, requests(2, sizes, 1), forecaster, Choosing(()), batches_per_block=len(sizes)))
        assert forecaster.tokens_saved == (tokens if certain else 0)
        assert (session.engine.stats()["predictor_seconds"] == 0) == certain
    session.engine.close()


def test_each_member_is_forecast_as_alone_and_the_block_as_their_union():
    """Prompts of one length, so that padding is the same."""
    session = open_session(Model, Variant.of("expertflow"), 8, LINK, costs=COSTS)

    def horizon(forecaster, groups):
        members = []
        for seed in groups:
            [request] = requests(seed, [3])
            members.append(make_member(session, request.prompts))
        return [part.now for part in forecaster.foretell(members)], forecaster.horizon(members, [True] * len(members))

    def fresh():
        return PredictedForecast(PREDICTOR, session.engine.clock, COSTS)

    [first], _ = horizon(fresh(), [1])
    [second], _ = horizon(fresh(), [2])
    both, joined = horizon(fresh(), [1, 2])
    np.testing.assert_array_equal(both, [first, second])
    np.testing.assert_array_equal(joined[0], combine_batches([first, second]))
    session.engine.close()


def test_batches_that_were_not_read_run_beside_one_that_is():
    """The predictor reads the newcomer alone; the others it has not read at their prompts, and cannot go on with."""
    session = open_session(Model, Variant.of("expertflow"), 8, LINK, costs=COSTS)
    forecaster, alone = (PredictedForecast(PREDICTOR, session.engine.clock, COSTS) for _ in range(2))
    unread = [make_member(session, request.prompts) for request in requests(2, [3] * 12)]
    forecaster.foretell(unread)
    saved = forecaster.tokens_saved
    assert saved == sum(int(member.lengths.sum()) for member in unread)
    answering = [Member.decode(member.sequences, member.x[:, :1], np.ones(3, bool)) for member in unread[:2]]
    [request] = requests(1, [3])
    newcomer = make_member(session, request.prompts)
    one, other, read = forecaster.foretell([*answering, newcomer])
    assert forecaster.tokens_saved == saved + 6
    np.testing.assert_array_equal(one, other)  # by the popularity of experts
    np.testing.assert_array_equal(read, alone.foretell([newcomer])[0])
    session.engine.close()


def make_member(session, prompts):
    batch = pad_prompts(CONFIG, prompts, 3)
    x, deepstack = session.embed(batch)
    return Member.prefill(batch, session.start(batch, 4), x, deepstack)


def plan(batches, budget):
    dense, expert = 10_000, Model.store.expert_bytes
    return plan_request(CONFIG, dense, expert, RequestSize(3, 12, 4, 48, 16, batches), itemsize=4, memory_budget=budget)


def test_a_budget_too_small_for_a_block_names_the_largest_that_fits():
    enough = plan(3, None).minimum_bytes
    assert plan(3, enough).slots == 1
    with pytest.raises(InputError, match=r"^batches_per_block=5: .*or take batches_per_block=3, which fits$"):
        plan(5, enough)
    assert plan(3, None).kv_bytes == 3 * plan(1, None).kv_bytes


def test_the_best_block_lets_fewest_experts_travel_for_a_batch():
    def best(slots):
        """With so many slots for each M; none: more than memory holds."""

        def planned(batches):
            if batches not in slots:
                raise InputError("below the minimum")
            return dataclasses.replace(plan(batches, None), slots=slots[batches])

        return best_block(planned)

    assert best({1: 24, 2: 24, 4: 24, 8: 24}) == 1  # all experts are there
    assert best({1: 12, 2: 12, 4: 12, 8: 12}) == 8
    assert best({1: 20, 2: 18, 4: 10}) == 2
    with pytest.raises(InputError, match="below the minimum"):
        best({})
