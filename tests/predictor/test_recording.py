"""Recording: the traces are those of the model's own greedy answers, and a finished set is not recorded again."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from expertflow_jax import checkpoints
from expertflow_jax.predictor.examples import unusual_examples
from expertflow_jax.predictor.recording import Recorder, record
from expertflow_jax.processing import Processor
from expertflow_jax.processing.batching import pad_prompts
from expertflow_jax.routing.fingerprint import fingerprint_of
from expertflow_jax.routing.trace_set import TraceSet
from expertflow_jax.tasks.encoding import encode_example

LIMIT = 4


@pytest.fixture(scope="module")
def parts(model_dir):
    module = checkpoints.load_model(model_dir, jnp.float32)
    processor = Processor.from_directory(model_dir)
    return module, processor, Recorder(module, (), fingerprint_of(module.config, module))


@nnx.jit
def fused_forward(module, pixels, where, ids, positions, lengths, index):
    images, deepstack = module.vision_stage(pixels, where)
    fused = module.forward(ids, positions, lengths, images, deepstack, index)
    return module.embed_stage(ids, images, index), fused


def test_traces_are_those_of_the_models_own_greedy_answers(parts):
    module, processor, recorder = parts
    prompts = [encode_example(processor, example) for example in unusual_examples(3)]
    limits = np.array([LIMIT, LIMIT, 1])
    embeddings, trace, answers = recorder.record(prompts, limits, ids=("a", "b", "c"))
    assert [len(answer) for answer in answers] == [LIMIT, LIMIT, 1]
    # The token at the limit is never run.
    assert (trace.lengths - trace.prompt_lengths).tolist() == [LIMIT - 1, LIMIT - 1, 0]

    width = int(trace.lengths.max()) + 1
    batch = pad_prompts(module.config, prompts)
    ids = np.zeros((3, width), np.int32)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        whole = np.concatenate([prompt.input_ids, answer])
        ids[row, : len(whole)] = whole
    index = np.full((3, width), -1, np.int32)
    index[:, : min(width, batch.image_index.shape[1])] = batch.image_index[:, :width]
    grid = np.concatenate([prompt.image_grid_thw for prompt in prompts])
    positions, _ = module.config.positions(ids, trace.lengths, grid)
    x, fused = fused_forward(module, batch.pixel_values, batch.vision_positions, ids, positions, trace.lengths, index)
    for row, answer in enumerate(answers):
        first, last = trace.prompt_lengths[row] - 1, trace.lengths[row]
        assert np.asarray(fused.logits)[row, first:last].argmax(-1).tolist() == answer
    found = np.asarray(fused.expert_ids).transpose(0, 2, 1, 3)[:, : trace.experts.shape[1]]
    np.testing.assert_array_equal(found, trace.experts)
    x = np.asarray(x)[:, : embeddings.shape[1]]
    used = trace.token_mask()
    np.testing.assert_allclose(embeddings[used], x[used], atol=1e-5)


def test_next_router_ranks_start_at_the_second_layer(parts):
    _, processor, recorder = parts
    prompts = [encode_example(processor, example) for example in unusual_examples(3)]
    _, trace, _ = recorder.record(prompts, np.full(3, LIMIT))
    used = trace.token_mask()
    ranked = trace.speculative[used]
    assert (ranked[:, 0] == -1).all()
    assert (np.sort(ranked[:, 1]) == np.arange(8)).all()  # all eight experts, each once
    top = ranked[:, 1, :2]
    agreement = (trace.experts[used][:, 1, :, None] == top[:, None]).any(-1).mean()
    assert agreement > 2 / 8  # better than chance: the next router nearly sees what it will see


def test_an_end_token_ends_the_answer(parts):
    module, processor, recorder = parts
    prompts = [encode_example(processor, example) for example in unusual_examples(1)] * 3
    _, _, (answer, *_) = recorder.record(prompts, np.full(3, LIMIT))
    stopping = Recorder(module, (answer[0],), "")
    _, trace, stopped = stopping.record(prompts, np.full(3, LIMIT))
    assert stopped == [[]] * 3
    assert trace.lengths.tolist() == trace.prompt_lengths.tolist()


def test_finished_trace_sets_are_kept_and_others_recorded_again(parts, tmp_path):
    _, processor, recorder = parts
    calls = []

    def make() -> Recorder:
        calls.append(1)
        return recorder

    def run(count: int) -> bool:
        source = {"count": count}
        return record(
            make, processor, lambda: unusual_examples(count), tmp_path, source=source, batch_size=3, show_progress=False
        )

    assert run(3)
    first = TraceSet.load(tmp_path)
    shards = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert not run(3)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == shards
    assert len(calls) == 1
    assert len(first) == 3
    assert first.trace.ids == ("all-cells-0", "all-cells-1", "all-cells-2")
    (tmp_path / "manifest.json").unlink()  # as after a kill
    assert run(3)
    assert TraceSet.load(tmp_path).checksum == first.checksum
    assert run(6)
    assert len(TraceSet.load(tmp_path)) == 6
