"""Routing analysis: signatures against baselines, image against text tokens, reuse distances, the whole command."""

import json

import numpy as np
import pytest

from configs import routing
from expertflow_jax import cli
from expertflow_jax.errors import InputError
from expertflow_jax.routing.statistics import signatures
from expertflow_jax.routing.trace import RoutingTrace
from expertflow_jax.studies.routing.modality import Tokens, spread
from expertflow_jax.studies.routing.reuse import batch_steps, hit_rates, reuse_distances, working_sets
from expertflow_jax.studies.routing.similarity import Pairs, by_load, classify, most_frequent, word_counts

EXPERTS, LAYERS = 16, 2


def two_kinds(prompts: int = 80, seed: int = 0) -> tuple[RoutingTrace, list[str]]:
    """Prompts of kind a prefer the first half of the experts, those of b the second; every expert as often."""
    rng = np.random.default_rng(seed)
    kinds = ["a", "b"] * (prompts // 2)
    half = np.array([0 if kind == "a" else EXPERTS // 2 for kind in kinds])
    experts_NxTxLxK = rng.integers(0, EXPERTS // 2, (prompts, 10, LAYERS, 2)) + half[:, None, None, None]
    return RoutingTrace(experts_NxTxLxK, EXPERTS), kinds


def test_prompts_of_one_kind_are_alike_and_told_apart():
    trace, kinds = two_kinds()
    clusters = [str(n) for n in range(len(kinds))]
    pairs = Pairs.of(signatures(trace), clusters)
    similarity = pairs.compare(kinds)
    assert similarity.within_mean > 0.7
    assert similarity.across_mean == pytest.approx(0.0)
    assert similarity.cohens_d > 5
    assert similarity.cohens_d > np.percentile(pairs.permuted(kinds, 50, 0), 99) + 5
    assert classify(signatures(trace), kinds, clusters, 0).min() == 1.0


def test_routes_drawn_by_load_keep_the_load_and_lose_the_kinds():
    trace, kinds = two_kinds()
    counts = signatures(trace, kind="counts")
    drawn = by_load(counts, 0)
    np.testing.assert_array_equal(drawn.sum(-1), counts.sum(-1))
    assert abs(Pairs.of(drawn, [str(n) for n in range(len(kinds))]).compare(kinds).cohens_d) < 0.3


def test_permuted_labels_give_the_same_figure_as_pairs_taken_apart():
    trace, kinds = two_kinds(12)
    pairs = Pairs.of(signatures(trace), [str(n) for n in range(12)])
    codes = np.random.default_rng(3).permutation(np.unique(kinds, return_inverse=True)[1])
    by_hand = pairs.compare([str(code) for code in codes]).cohens_d
    assert pairs.permuted(kinds, 1, 3)[0] == pytest.approx(by_hand)


def test_prompts_of_one_cluster_are_not_compared():
    trace, kinds = two_kinds(4)
    assert len(Pairs.of(signatures(trace), ["x", "y", "x", "z"]).cosine) == 5
    with pytest.raises(InputError, match="two labels"):
        Pairs.of(signatures(trace), list("wxyz")).compare(["a"] * 4)
    with pytest.raises(InputError, match="raise `sequences`"):
        classify(signatures(trace), kinds, ["x"] * 4, 0)


def test_words_and_guess_by_hand():
    counts = word_counts([np.array([5, 7, 5]), np.array([9])])
    np.testing.assert_array_equal(counts, [[2, 1, 0], [0, 0, 1]])
    assert most_frequent(["a", "b", "a"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("width", "sign"), [(2, -1), (EXPERTS, 1)])
def test_the_kind_that_spreads_wider_is_seen(width, sign):
    rng = np.random.default_rng(1)
    image = np.arange(24) < 12
    experts = np.where(image[:, None, None], rng.integers(0, width, (40, 24, LAYERS, 1)) % EXPERTS, 0)
    experts = np.where(image[:, None, None], experts, rng.integers(0, 6, (40, 24, LAYERS, 1)))
    trace = RoutingTrace(experts, EXPERTS)
    measured = spread(Tokens.of(trace, np.tile(image, (40, 1))), times=50, seed=0)
    assert (np.sign(measured.difference) == sign).all()
    assert (measured.difference_p < 0.05).all()
    assert (measured.divergence > measured.divergence_random).all()


def test_random_kinds_differ_in_nothing():
    rng = np.random.default_rng(2)
    trace = RoutingTrace(rng.integers(0, EXPERTS, (40, 24, LAYERS, 2)), EXPERTS)
    measured = spread(Tokens.of(trace, rng.random((40, 24)) < 0.5), times=100, seed=0)
    assert (measured.difference_p > 0.01).all()
    assert (measured.divergence < 2 * measured.divergence_random).all()
    with pytest.raises(InputError, match="both image and text"):
        spread(Tokens.of(trace, np.zeros((40, 24), bool)), times=2, seed=0)


def test_reuse_distances_by_hand():
    needed = np.zeros((4, 1, 4), bool)
    for step, experts in enumerate(([0], [1, 2], [0], [2, 3])):
        needed[step, 0, experts] = True
    # 0 after 1 and 2; 2 after 0; 1, 2 and 3 for the first time.
    assert reuse_distances(needed)[0].tolist() == [4, 4, 4, 2, 1, 4]
    assert working_sets(needed)[2].tolist() == pytest.approx([(3 + 3 + 3) / 3])


def test_reuse_distances_foretell_what_the_engine_hits():
    """Exactly, but for the experts that the cache begins with, whose first use hits: one expert a step, one layer."""
    rng = np.random.default_rng(4)
    experts = np.concatenate([np.arange(8), rng.integers(0, 8, 392)]).reshape(1, 400, 1, 1)
    trace = RoutingTrace(experts, 8, prompt_lengths=np.array([1]))
    steps = batch_steps(trace, 1)
    assert len(steps) == 400
    distances = reuse_distances(np.stack([step.needed for step in steps]))
    for rate in hit_rates(steps, distances, (2, 4, 6, 8)):
        assert rate.replayed == pytest.approx(rate.foretold + rate.size / 400)


def test_steps_hold_every_token_once():
    experts = np.arange(2 * 5).reshape(2, 5, 1, 1) % 8
    trace = RoutingTrace(experts, 8, lengths=np.array([5, 5]), prompt_lengths=np.array([3, 4]))
    steps = batch_steps(trace, 2)
    assert [step.tokens for step in steps] == [7, 2, 1]
    assert [step.begins for step in steps] == [True, False, False]
    np.testing.assert_array_equal(sum(step.rows for step in steps)[0], np.bincount(experts.reshape(-1), minlength=8))


@pytest.mark.slow
def test_the_command_writes_measures_and_report(tmp_path, capsys):
    from eval.routing import main

    overrides = [
        *("--config.sequences.vqa_v2=80", "--config.sequences.mmbench=40", "--config.digit_scenes.val=400"),
        *("--config.fewest=8", "--config.permutations=20", "--config.record_batch_size=40"),
    ]
    path = routing.__file__
    argv = [f"--config={path}", f"--workdir={tmp_path / 'run'}", *overrides]
    assert cli.run_command(main, description="routing", argv=argv) == 0
    measures = json.loads((tmp_path / "run" / "routing.json").read_text())
    assert set(measures["similarity"]) == {"task", "group"}
    assert measures["similarity"]["group"]["routes"]["cohens_d"] > 1
    assert len(measures["modality"]["image_entropy"]) == 6
    assert all(abs(rate["foretold"] - rate["replayed"]) < 0.1 for rate in measures["reuse"]["hit_rates"])
    text = (tmp_path / "run" / "report.md").read_text()
    assert "2603.11114" in text
    assert (tmp_path / "run" / "plots" / "reuse.png").exists()
    capsys.readouterr()
    assert cli.run_command(main, description="routing", argv=[*argv, "--config.sequences.vqa_v2=2"]) == 2
    assert "workdir" in capsys.readouterr().err
    assert cli.run_command(main, description="routing", argv=[f"--config={path}", "--dry_run"]) == 0
    assert "6 MoE layers of 64 experts" in capsys.readouterr().out
