"""The recorder puts decoded tokens right behind their prompts; trace sets survive the disk or are refused."""

import json

import numpy as np
import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.routing.fingerprint import model_fingerprint
from expertflow_jax.routing.recorder import SequenceRecorder
from expertflow_jax.routing.trace import RoutingTrace
from expertflow_jax.routing.trace_set import TraceSet, TraceSetWriter


def record(seed: int = 0, ids=("x", "y", "z")):
    """Three sequences with prompts of 4, 2 and 3 tokens, decoding 2, 0 and 1 tokens."""
    rng = np.random.default_rng(seed)
    prompts = np.array([4, 2, 3])
    embeddings, experts = rng.normal(size=(3, 5, 6)), rng.integers(0, 8, (3, 5, 2, 2))
    steps = [(rng.normal(size=(3, 1, 6)), rng.integers(0, 8, (3, 1, 2, 2))) for _ in range(2)]
    active = [np.array([True, False, True]), np.array([True, False, False])]
    recorder = SequenceRecorder(8, model_fingerprint="m")
    recorder.prefill(embeddings, experts, prompts, speculative=experts)
    for (x, e), live in zip(steps, active, strict=True):
        recorder.decode(x, e, active=live, speculative=e)
    return recorder.finish(ids, ("a", "b", "a")), (embeddings, experts, steps)


def test_recorder_places_tokens_without_gaps():
    (x, trace), (embeddings, experts, steps) = record()
    assert trace.lengths.tolist() == [6, 2, 4]
    assert trace.prompt_lengths.tolist() == [4, 2, 3]
    assert x.shape == (3, 6, 6)
    np.testing.assert_array_equal(trace.experts[0, :4], experts[0, :4])
    np.testing.assert_array_equal(trace.experts[0, 4:6], [steps[0][1][0, 0], steps[1][1][0, 0]])
    np.testing.assert_array_equal(trace.experts[2, 3], steps[0][1][2, 0])
    np.testing.assert_array_equal(x[0, 5], steps[1][0][0, 0])
    np.testing.assert_array_equal(x[1, :2], embeddings[1, :2])
    np.testing.assert_array_equal(trace.speculative, trace.experts)
    assert (trace.experts[1, 2:] == -1).all()
    assert (x[1, 2:] == 0).all()
    assert trace.model_fingerprint == "m"


def test_recorder_needs_a_prefill():
    with pytest.raises(InputError, match="before prefill"):
        SequenceRecorder(8).decode(np.zeros((1, 1, 2)), np.zeros((1, 1, 1, 1), int))
    with pytest.raises(InputError, match="nothing recorded"):
        SequenceRecorder(8).finish()


def test_trace_set_round_trip(tmp_path):
    parts = [record(seed, ids=[f"{seed}/{i}" for i in range(3)])[0] for seed in range(5)]
    with TraceSetWriter(tmp_path, source={"task": "vqa_v2"}, shard_sequences=4) as writer:
        for x, trace in parts:
            writer.add(x, trace)
    assert len(list(tmp_path.glob("shard-*.npz"))) == 3
    found = TraceSet.load(tmp_path)
    np.testing.assert_allclose(found.embeddings, np.concatenate([x for x, _ in parts]), atol=2e-3)
    whole = RoutingTrace.concatenate([trace for _, trace in parts])
    np.testing.assert_array_equal(found.trace.experts, whole.experts)
    assert found.trace.ids == whole.ids
    assert found.source["task"] == "vqa_v2"
    assert len(found.checksum) == 32
    assert found.select(slice(2, 5)).trace.ids == whole.ids[2:5]


def test_large_embeddings_are_kept_in_float32_and_broken_ones_refused(tmp_path):
    (x, trace), _ = record()
    with TraceSetWriter(tmp_path) as writer:
        writer.add(1e6 * x, trace)
    assert TraceSet.load(tmp_path).embeddings.dtype == np.float32
    x[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        TraceSetWriter(tmp_path).add(x, trace)


def test_unfinished_and_damaged_trace_sets_are_refused(tmp_path):
    (x, trace), _ = record()
    writer = TraceSetWriter(tmp_path, shard_sequences=1)
    writer.add(x, trace)
    with pytest.raises(InputError, match="no finished trace set"):
        TraceSet.load(tmp_path)
    writer.close()
    shard = tmp_path / "shard-00000.npz"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="truncated"):
        TraceSet.load(tmp_path)
    np.savez(shard, embeddings=x, **trace.select(slice(0, 2)).to_arrays())
    with pytest.raises(InputError, match="checksum"):
        TraceSet.load(tmp_path)
    manifest = tmp_path / "manifest.json"
    for text in ("{", "[]", json.dumps({"format": "expertflow_jax.trace_set/1", "shards": []})):
        manifest.write_text(text)
        with pytest.raises(InputError, match="manifest"):
            TraceSet.load(tmp_path)
    with pytest.raises(InputError, match="no sequences"):
        TraceSetWriter(tmp_path / "empty").close()


def test_fingerprint_sees_config_names_and_values_but_not_dtype():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(10, 4)).astype(np.float32)
    base = model_fingerprint({"d": 4, "dtype": "float32"}, {"embed": (10, 4)}, {"embed": table})
    same = model_fingerprint(
        {"dtype": "bfloat16", "d": 4}, {"embed": (10, 4)}, {"embed": np.asarray(table, dtype="bfloat16")}
    )
    assert base == same
    assert base != model_fingerprint({"d": 5}, {"embed": (10, 4)}, {"embed": table})
    assert base != model_fingerprint({"d": 4}, {"other": (10, 4)}, {"embed": table})
    table[3, 2] += 0.5
    assert base != model_fingerprint({"d": 4}, {"embed": (10, 4)}, {"embed": table})
