"""Which questions are asked: the first, or a seeded sample of whole images; only those are prepared, images once."""

import json

import numpy as np
import pytest
from official_files import annotation, encoded, write_mmbench, write_vqa
from PIL import Image

from expertflow_jax.errors import InputError
from expertflow_jax.tasks.questions import Question, select
from expertflow_jax.tasks.registry import make_task


def question(number: int, cluster: str, rotates: str | None = None) -> Question:
    return Question(str(number), "?", cluster, None, {}, cluster, rotates)


QUESTIONS = [question(i, f"image {i // 3}") for i in range(30)]


def ids(questions: list[Question]) -> list[int]:
    return [int(question.id) for question in questions]


def test_the_first_questions():
    assert ids(select(QUESTIONS, 4, None)) == [0, 1, 2, 3]
    assert select(QUESTIONS, None, 3) == QUESTIONS
    assert ids(select(QUESTIONS, 99, None)) == list(range(30))


def test_a_sample_keeps_images_whole_and_the_order_of_the_file():
    samples = [ids(select(QUESTIONS, 10, seed)) for seed in (0, 0, 1, 2)]
    assert samples[0] == samples[1]
    assert len({tuple(sample) for sample in samples}) == 3
    for sample in samples:
        assert sample == sorted(sample)
        assert len(sample) == 9
        assert all(sample.count(3 * (i // 3) + k) == 1 for i in sample for k in range(3))


def test_every_image_is_as_likely():
    counts = np.bincount([i for seed in range(300) for i in ids(select(QUESTIONS, 9, seed))], minlength=30)
    assert counts.min() > 60
    assert counts.max() < 120


def test_rotations_stay_together():
    rows = [question(i, f"image {i // 8}", f"question {i // 4}") for i in range(32)]
    assert ids(select(rows, 9, None)) == list(range(8))
    assert ids(select(rows, 2, None)) == list(range(4))
    assert len(select(rows, 17, 5)) == 16


def test_a_limit_below_one_is_refused():
    with pytest.raises(InputError, match="num_examples: -1 is below 1"):
        select(QUESTIONS, -1, None)


def write_scenes(data_dir, images: int, per_image: int) -> None:
    ask = [
        {"image_id": i, "question": "?", "question_id": 100 * i + k} for i in range(images) for k in range(per_image)
    ]
    notes = [annotation(row["question_id"], row["image_id"], "is", "yes/no", ["yes"] * 10) for row in ask]
    folder = write_vqa(data_dir, {"questions": ask}, {"annotations": notes})
    for i in range(images):
        (folder / "val2014" / f"COCO_val2014_{i:012d}.jpg").write_bytes(encoded(i, "JPEG"))


def test_what_is_not_asked_is_not_read(tmp_path):
    write_scenes(tmp_path, 40, 5)
    for i in range(20, 40):
        (tmp_path / "vqa_v2" / "val2014" / f"COCO_val2014_{i:012d}.jpg").write_bytes(b"damaged")
    task = make_task("vqa_v2", tmp_path, "val")
    examples = task.examples(12)
    assert len(examples) == 12
    assert len(task.inputs()) == 2 + 3  # questions, annotations and the images of twelve questions
    assert examples[0].image is examples[4].image
    with pytest.raises(InputError, match="not a readable image"):
        task.examples()


def test_images_are_stored_once(tmp_path):
    write_scenes(tmp_path, 2, 50)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    for i in range(2):
        Image.fromarray(pixels).save(tmp_path / "vqa_v2" / "val2014" / f"COCO_val2014_{i:012d}.jpg", quality=95)
    size = (tmp_path / "vqa_v2" / "val2014" / f"COCO_val2014_{1:012d}.jpg").stat().st_size
    make_task("vqa_v2", tmp_path, "val").examples()
    stored = sum(path.stat().st_size for path in (tmp_path / "tfds").rglob("*.array_record*"))
    assert 2 * size < stored < 4 * size


def test_samples_of_official_files(tmp_path):
    write_scenes(tmp_path, 30, 4)
    write_mmbench(tmp_path)
    drawn = [make_task("vqa_v2", tmp_path, "val", sample_seed=seed).examples(8) for seed in (0, 1)]
    assert {example.cluster for example in drawn[0]} != {example.cluster for example in drawn[1]}
    assert [len({example.cluster for example in examples}) for examples in drawn] == [2, 2]
    chosen = make_task("mmbench", tmp_path, "val", sample_seed=3).examples(3)
    assert len({example.question for example in chosen}) == 1


def test_a_task_that_draws_no_sample_says_so(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "val.jsonl").write_text(json.dumps({"text": "a"}))
    with pytest.raises(InputError, match="sample_seed: task text draws no sample"):
        make_task("text", tmp_path, "val", sample_seed=0)
