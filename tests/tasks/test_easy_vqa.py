"""easy-VQA becomes official VQA v2 files; needs the package easy-vqa."""

import functools
import sys

import numpy as np
import pytest

from configs import easy_vqa_moe
from expertflow_jax.errors import InputError
from expertflow_jax.tasks import easy_vqa, word_processor
from expertflow_jax.tasks.registry import make_task
from expertflow_jax.tasks.vqa_v2 import prompt_text
from expertflow_jax.training.course import architecture
from expertflow_jax.training.easy_vqa import TOKENS, EasyVqa


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


def test_what_was_written_is_left_and_what_was_damaged_is_written_again(tmp_path):
    pytest.importorskip("easy_vqa")
    counts = easy_vqa.write_benchmark(tmp_path, limit=3)
    image = next((tmp_path / "vqa_v2" / "val2014").iterdir())
    written, content = image.stat().st_mtime_ns, image.read_bytes()
    assert easy_vqa.write_benchmark(tmp_path, limit=3) == counts
    assert image.stat().st_mtime_ns == written
    image.write_bytes(b"")
    assert easy_vqa.write_benchmark(tmp_path, limit=3) == counts
    assert image.read_bytes() == content


def test_files_of_another_benchmark_are_not_written_over(tmp_path):
    pytest.importorskip("easy_vqa")
    (tmp_path / "vqa_v2").mkdir()
    official = tmp_path / "vqa_v2" / "v2_OpenEnded_mscoco_val2014_questions.json"
    official.write_text("{}")
    with pytest.raises(InputError, match=r"holds files that are not easy-VQA's; name another folder"):
        easy_vqa.write_benchmark(tmp_path, limit=3)
    assert official.read_text() == "{}"


def test_the_models_vocabulary_has_every_word():
    package = pytest.importorskip("easy_vqa")
    tokenizer = EasyVqa.processor.build_tokenizer()
    texts, answers, _ = package.get_train_questions()
    for text in {*texts, *answers, *package.get_test_questions()[0]}:
        prompt = word_processor.prompt_of(prompt_text(text), image_tokens=16)
        assert tokenizer.token_to_id(word_processor.UNKNOWN) not in tokenizer.encode(prompt).ids
        assert len(tokenizer.encode(prompt).ids) + 2 <= TOKENS  # the answer and its end


def test_validation_shares_no_image_with_what_is_learnt(tmp_path, monkeypatch):
    pytest.importorskip("easy_vqa")
    monkeypatch.setattr(easy_vqa, "write_benchmark", functools.partial(easy_vqa.write_benchmark, limit=12))
    config = easy_vqa_moe.get_config()
    config.update(batch_size=8, held_out_images=4)
    course = EasyVqa(config, architecture(config), tmp_path)
    batches = course.batch(0), course.held_out()[0][1]
    learnt, held_out = ({np.sort(image, axis=None).tobytes() for image in b["pixel_values"]} for b in batches)
    assert not learnt & held_out  # however an image is mirrored
    again = EasyVqa(config, architecture(config), tmp_path).batch(0)
    for name, values in course.batch(0).items():
        np.testing.assert_array_equal(values, again[name])
    ids, mask = again["input_ids"], again["answer_mask"]
    words = {EasyVqa.processor.build_tokenizer().decode(row[here]) for row, here in zip(ids, mask, strict=True)}
    assert words <= set(easy_vqa.ANSWERS)
    assert len(words - {"yes", "no"}) > 0
