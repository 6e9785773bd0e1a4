"""Other official benchmarks: files read as published, answers scored by their evaluators' rules, files for servers."""

import base64
import io
import json

import pytest
from official_files import encoded, questions, rows, write_mmbench, write_vqa

from expertflow_jax.errors import InputError
from expertflow_jax.tasks.registry import TASKS, make_task


def text_of(example) -> str:
    return next(item["text"] for item in example.messages[0]["content"] if item["type"] == "text")


def test_pope(tmp_path):
    folder = tmp_path / "pope"
    (folder / "val2014").mkdir(parents=True)
    (folder / "val2014" / "COCO_val2014_000000000009.jpg").write_bytes(encoded(9, "JPEG"))
    for subset in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": i, "image": "COCO_val2014_000000000009.jpg", "text": f"Is there a {i}?", "label": label}
            for i, label in enumerate(["yes", "no"], 1)
        ]
        (folder / f"coco_pope_{subset}.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    task = make_task("pope", tmp_path, "val")
    examples = task.examples()
    assert [example.id for example in examples][:3] == ["random-1", "random-2", "popular-1"]
    assert {example.cluster for example in examples} == {"COCO_val2014_000000000009.jpg"}
    answers = ["Yes, a dog.", "No.", "yes", "Yes", "There is not. Yes", "no"]
    scores = task.aggregate(examples, answers)
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["subset/random"] == 1
    assert scores["subset/popular"] == 0.5
    assert scores["yes_ratio"] == 0.5
    assert (scores["precision"], scores["recall"]) == pytest.approx((2 / 3, 2 / 3))
    assert scores["f1/random"] == 1
    assert scores["f1/adversarial"] == 0
    assert [task.second_score(examples[0], answer) for answer in ("Yes, a dog.", " YES")] == [0, 1]
    assert len(make_task("pope", tmp_path, "popular").examples()) == 2
    with pytest.raises(InputError, match="no split 'test'; known: val, random, popular, adversarial"):
        make_task("pope", tmp_path, "test")


def test_textvqa(tmp_path):
    folder = tmp_path / "textvqa"
    (folder / "train_images").mkdir(parents=True)
    (folder / "train_images" / "ab12.jpg").write_bytes(encoded(1, "JPEG"))
    row = {"question": "what is it?", "image_id": "ab12", "question_id": 34602, "answers": ["Coca-Cola's"] * 10}
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": [row]}))
    task = make_task("textvqa", tmp_path, "val")
    (example,) = task.examples()
    assert task.score(example, "coca cola 's") == 1
    assert task.score(example, "pepsi") == 0
    assert json.loads(task.submission([example], ["x"])[1]) == [{"question_id": 34602, "answer": "x"}]


def test_gqa(tmp_path):
    folder = tmp_path / "gqa"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "2354786.jpg").write_bytes(encoded(1, "JPEG"))
    types = {"structural": "verify", "semantic": "attr", "detailed": "existAttrOr"}
    row = {"imageId": "2354786", "question": "Is it red?", "answer": "no", "types": types, "isBalanced": True}
    (folder / "testdev_balanced_questions.json").write_text(json.dumps({"00123": row}))
    task = make_task("gqa", tmp_path, "testdev")
    (example,) = task.examples()
    assert [task.score(example, answer) for answer in ("no", "No.")] == [1, 0]
    assert [task.second_score(example, answer) for answer in ("no", "No.")] == [1, 1]
    assert task.aggregate([example], ["no"]) == {"accuracy": 1, "structural/verify": 1, "semantic/attr": 1}
    assert json.loads(task.submission([example], ["no"])[1]) == [{"questionId": "00123", "prediction": "no"}]


@pytest.mark.parametrize("split", ["test", "test-dev", "test2015", "test-dev2015"])
def test_questions_without_public_answers(tmp_path, split):
    folder = tmp_path / "vqa_v2"
    (folder / "test2015").mkdir(parents=True)
    for image_id in (4, 9):
        (folder / "test2015" / f"COCO_test2015_{image_id:012d}.jpg").write_bytes(encoded(image_id, "JPEG"))
    part = split if split.endswith("2015") else f"{split}2015"
    (folder / f"v2_OpenEnded_mscoco_{part}_questions.json").write_text(json.dumps(questions()))
    task = make_task("vqa_v2", tmp_path, split)
    assert not task.scored
    examples = task.examples()
    assert [example.target for example in examples] == [None] * 3
    ending, content = task.submission(examples, ["a", "é", ""])
    assert (ending, json.loads(content)) == (
        "json",
        [{"question_id": n, "answer": a} for n, a in ((9001, "a"), (9000, "é"), (4002, ""))],
    )


def test_a_second_score_processes_every_answer(tmp_path):
    write_vqa(tmp_path)
    task = make_task("vqa_v2", tmp_path, "val")
    unanimous = task.examples()[1]  # ten times "yes"
    assert [task.score(unanimous, answer) for answer in ("yes", "Yes", "yes.")] == [1, 0, 0]
    assert [task.second_score(unanimous, answer) for answer in ("yes", "Yes", "yes.")] == [1, 1, 1]
    assert "a013f00" in task.evaluator
    assert "lmms-eval" in task.second_evaluator


def test_the_submission_of_multiple_choice_reads_back(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    table = rows()
    table[0]["question"] = "=1+1"
    write_mmbench(tmp_path, table)
    task = make_task("mmbench", tmp_path, "val")
    ending, content = task.submission(task.examples(), ["A", "=B", "C\x07", "", "né"])
    assert ending == "xlsx"
    header, *lines = openpyxl.load_workbook(io.BytesIO(content)).active.iter_rows(values_only=True)
    assert header == (
        *["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "split"],
        "prediction",
    )
    assert [line[0] for line in lines] == [7, 1000007, 12, 1000012, 2000012]
    assert lines[0][1] == "=1+1"
    assert [line[-1] or "" for line in lines] == ["A", "=B", "C", "", "né"]


def test_a_test_file_has_no_answers(tmp_path):
    pytest.importorskip("openpyxl")
    path = write_mmbench(tmp_path, header=[name for name in rows()[0] if name != "answer"])
    path.rename(path.with_name("MMBench_TEST_EN.tsv"))
    task = make_task("mmbench", tmp_path, "test")
    assert not task.scored
    assert [example.target for example in task.examples()] == [None] * 5


MCQ = [name for name, task in TASKS.items() if hasattr(task, "files")]


@pytest.mark.parametrize("name", MCQ)
def test_every_multiple_choice_file_is_read_under_its_name(tmp_path, name):
    task_class = TASKS[name]
    columns = ["index", "question", "A", "B", "C", "D", "answer", "image", *task_class.columns[2:]]
    cells = {"index": "3", "question": "Which?", "A": "ball", "B": "None", "C": "cone", "answer": "C", "category": "x"}
    cells["image"] = base64.b64encode(encoded(5)).decode()
    path = task_class.path(tmp_path, "val")
    path.parent.mkdir()
    path.write_text("\t".join(columns) + "\n" + "\t".join(cells.get(column, "") for column in columns) + "\n")
    task = make_task(name, tmp_path, "val")
    (example,) = task.examples()
    assert example.target["options"] == {"A": "ball", "C": "cone"}  # as VLMEvalKit's reader has it
    assert [task.score(example, answer) for answer in ("C", "A")] == [1, 0]
    newer = make_task(name, tmp_path, "val", evaluator="vlmevalkit-2026-06")
    answer = "The answer is C, and no other one could be so"
    assert (task.score(example, answer), newer.score(example, answer)) == (0, 1)
    assert (task.second_score(example, answer), newer.second_score(example, answer)) == (1, 0)
    assert task.evaluator == newer.second_evaluator


def test_each_harness_asks_in_its_own_way(tmp_path):
    write_vqa(tmp_path)
    write_mmbench(tmp_path)
    limits = {}
    for harness in ("", "lmms-eval", "vlmevalkit"):
        for name in ("vqa_v2", "mmbench"):
            example = make_task(name, tmp_path, "val", harness=harness).examples(3)[-1]
            limits[name, harness] = example.max_new_tokens
            first = example.messages[0]["content"][0]["type"]
            assert first == ("image" if harness else "text")
    assert limits["vqa_v2", ""] == 10
    assert limits["vqa_v2", "lmms-eval"] == 16
    assert limits["mmbench", "lmms-eval"] == 1024
    asked = make_task("mmbench", tmp_path, "val", harness="lmms-eval", max_new_tokens=5).examples()[2]
    assert asked.max_new_tokens == 5
    assert text_of(asked) == (
        "Look. Which? There are several options:\nA. ball\nB. cube\nC. cone\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    with pytest.raises(InputError, match=r"config key harness: task 'mmbench' has no 'x'; known: '', 'vlmevalkit'"):
        make_task("mmbench", tmp_path, "val", harness="x")
    with pytest.raises(InputError, match="config key evaluator: no 'x'; known: vlmevalkit-2025-08"):
        make_task("mmbench", tmp_path, "val", evaluator="x")
