"""easy-VQA becomes official VQA v2 files; needs the package easy-vqa."""

import sys

import pytest

from expertflow_jax.tasks import easy_vqa
from expertflow_jax.tasks.registry import make_task


def test_it_is_read_as_vqa_v2(tmp_path):
    package = pytest.importorskip("easy_vqa")
    counts = easy_vqa.write_benchmark(tmp_path, limit=6)
    texts, answers, images = package.get_test_questions()
    wanted = [(text, answer) for text, answer, image in zip(texts, answers, images, strict=True) if image < 6]
    task = make_task("vqa_v2", tmp_path, "val")
    examples = task.examples()
    assert counts["val"] == len(examples) == len(wanted)
    assert task.aggregate(examples, [answer for _, answer in wanted])["accuracy"] == 1
    for example, (text, _) in zip(examples, wanted, strict=True):
        assert example.messages[0]["content"][0]["text"].startswith(text)
        assert example.image.shape == (64, 64, 3)
    assert {example.groups["answer_type"] for example in examples} <= {"yes/no", "other"}
    assert len({example.cluster for example in examples}) == 6


def test_every_published_question_has_a_type():
    package = pytest.importorskip("easy_vqa")
    texts = {*package.get_train_questions()[0], *package.get_test_questions()[0]}
    assert "other" not in {easy_vqa.question_type(text) for text in texts}


def test_without_the_package_one_line_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    assert easy_vqa.main([str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "pip install easy-vqa" in message
    assert message.count("\n") == 1
    assert easy_vqa.main([]) == 2
