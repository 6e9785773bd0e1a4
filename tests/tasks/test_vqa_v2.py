"""VQA v2: the official files are read question for question; whatever is wrong with them is said in one line."""

import os

import numpy as np
import pytest
from official_files import annotations, encoded, image, questions, write_vqa

from expertflow_jax.errors import InputError
from expertflow_jax.tasks.registry import make_task


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    write_vqa(data_dir)
    return make_task("vqa_v2", data_dir, "val")


def test_questions_meet_their_annotations_and_images(task):
    examples = task.examples()
    assert [e.id for e in examples] == ["9001", "9000", "4002"]
    assert [e.cluster for e in examples] == ["9", "9", "4"]
    assert examples[2].target["answers"] == ["2"] * 8 + ["3"] * 2
    content = examples[0].messages[0]["content"]
    assert content == [
        {"type": "text", "text": "What is it?\nAnswer the question using a single word or phrase."},
        {"type": "image"},
    ]
    np.testing.assert_allclose(examples[2].image.astype(int), image(4), atol=3)  # JPEG
    assert len(task.examples(2)) == 2


def test_official_scores(task):
    examples = task.examples()
    # 6 of 10 said "a dog": a full point; nobody "no"; 2 of 10 said 3: 0.6 on average over the ten left-one-out sets.
    assert [task.score(e, p) for e, p in zip(examples, ["Dog.", "no", "three"], strict=True)] == [1, 0, 0.6]
    assert task.aggregate(examples, ["dog", "yes", "2"])["accuracy"] == 1


def test_image_before_the_question_when_asked(tmp_path):
    write_vqa(tmp_path)
    content = make_task("vqa_v2", tmp_path, "val", image_first=True).examples(1)[0].messages[0]["content"]
    assert [item["type"] for item in content] == ["image", "text"]


def edited(tree, path, value):
    for key in path[:-1]:
        tree = tree[key]
    if value is None:
        del tree[path[-1]]
    else:
        tree[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["questions"], None, "questions"),
        (["questions", 1, "question"], None, r"question 1.*question"),
        (["questions", 1, "question_id"], "x", r"question 1.*question_id"),
        (["questions", 1, "question_id"], 9001, "9001 occurs twice"),
        (["questions", 1, "question_id"], 5, "no annotation of question 5"),
        (["questions", 2], None, "no question 4002"),
    ],
)
def test_malformed_questions(tmp_path, path, value, message):
    tree = questions()
    edited(tree, path, value)
    write_vqa(tmp_path, ask=tree)
    with pytest.raises(InputError, match=rf"questions\.json.*{message}|annotations\.json.*{message}") as caught:
        make_task("vqa_v2", tmp_path, "val").examples()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["annotations"], {}, "annotations"),
        (["annotations", 0, "answers"], [{"answer": "x"}], "1 answers, the metric needs 10"),
        (["annotations", 0, "answers", 3, "answer"], 7, "annotation 0, an answer"),
        (["annotations", 0, "question_id"], 9001, "annotated twice"),
        (["annotations", 0, "answer_type"], None, "answer_type"),
    ],
)
def test_malformed_annotations(tmp_path, path, value, message):
    tree = annotations()
    edited(tree, path, value)
    write_vqa(tmp_path, notes=tree)
    with pytest.raises(InputError, match=rf"annotations\.json.*{message}"):
        make_task("vqa_v2", tmp_path, "val").examples()


@pytest.mark.parametrize("text", ["", '{"questions": [', "[]"])
def test_a_file_that_is_no_such_json(tmp_path, text):
    folder = write_vqa(tmp_path)
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(text)
    with pytest.raises(InputError, match=r"questions\.json"):
        make_task("vqa_v2", tmp_path, "val").examples()


def test_missing_files_name_their_source(tmp_path):
    with pytest.raises(InputError, match=r"visualqa\.org"):
        make_task("vqa_v2", tmp_path, "val")
    folder = write_vqa(tmp_path)
    (folder / "val2014" / "COCO_val2014_000000000004.jpg").unlink()
    with pytest.raises(InputError, match=r"000000000004\.jpg.*cocodataset\.org"):
        make_task("vqa_v2", tmp_path, "val").examples()


@pytest.mark.parametrize("damage", [b"", b"no image", encoded(9, "JPEG")[:200]])
def test_a_corrupt_image_is_named(tmp_path, damage):
    folder = write_vqa(tmp_path)
    (folder / "val2014" / "COCO_val2014_000000000009.jpg").write_bytes(damage)
    with pytest.raises(InputError, match=r"000000000009\.jpg"):
        make_task("vqa_v2", tmp_path, "val").examples()
    assert not list((tmp_path / "tfds").rglob("*.array_record*"))  # nothing half-prepared is left to be read


@pytest.mark.parametrize(("name", "split", "message"), [("vqa", "val", "did you mean"), ("vqa_v2", "dev", "no split")])
def test_unknown_names(tmp_path, name, split, message):
    with pytest.raises(InputError, match=message):
        make_task(name, tmp_path, split)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["v2_mscoco_val2014_annotations.json", "val2014/COCO_val2014_000000000004.jpg"])
@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_a_pipe_or_a_device_is_not_waited_for(tmp_path, name, kind):
    path = write_vqa(tmp_path) / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=rf"{path.name}: not a regular file; ") as caught:
        make_task("vqa_v2", tmp_path, "val").examples()
    assert "\n" not in str(caught.value)
