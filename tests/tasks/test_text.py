"""Tasks on a user's own files: what is read, how documents are cut and scored, and clear refusals."""

import base64
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from expertflow_jax.errors import InputError
from expertflow_jax.locate import ASSETS
from expertflow_jax.processing import Processor
from expertflow_jax.tasks.base import Example, user_turn
from expertflow_jax.tasks.digit_scenes.processor_files import PROCESSOR
from expertflow_jax.tasks.encoding import encode_example, encode_task
from expertflow_jax.tasks.registry import make_task


def written(folder, name, *lines):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def test_documents_are_cut_into_windows_that_foretell_their_own_next_tokens(tmp_path):
    ids = list(range(10))
    task = make_task("text", written(tmp_path, "text/val.jsonl", f'{{"input_ids": {ids}}}'), "val")
    examples, prompts = encode_task(None, task, task.examples(), 4, vocabulary=16)
    assert [e.target for e in examples] == [[1, 2, 3], [5, 6, 7], [9]]
    np.testing.assert_array_equal(prompts[1].input_ids, [4, 5, 6, 7])
    assert task.score(examples[0], "1 7 3") == pytest.approx(2 / 3)


def test_a_text_file_is_one_document(tmp_path):
    task = make_task("text", written(tmp_path, "text/train.txt", "two", "lines"), "train")
    (document,) = task.examples()
    assert document.text == "two\nlines\n"


def test_prompts_are_conversations_and_answers_are_compared_without_case_and_space(tmp_path):
    lines = '{"prompt": "2 + 2?", "answer": "Four"}', '{"messages": [{"role": "user", "content": "Hi"}]}'
    task = make_task("prompts", written(tmp_path, "prompts/val.jsonl", *lines), "val")
    first, second = task.examples()
    assert first.messages == [{"role": "user", "content": "2 + 2?"}]
    assert task.score(first, " four ") == 1.0
    assert task.score(first, "five") == 0.0
    with pytest.raises(InputError, match='no "answer"'):
        task.score(second, "Hello")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: not JSON"),
        ("[]", "line 1: want a JSON object"),
        ('{"text": 3}', "line 1: want either"),
        ('{"input_ids": [1, -1]}', "line 1: want either"),
        ('{"input_ids": [1, true]}', "line 1: want either"),
        ('{"input_ids": [1, 4294967297]}', "line 1: want either"),
        ("[" * 100_000, "line 1: not JSON"),
        ("", "no lines"),
    ],
)
def test_bad_rows_are_named(tmp_path, line, said):
    task = make_task("text", written(tmp_path, "text/val.jsonl", line), "val")
    with pytest.raises(InputError, match=said):
        task.examples()


@pytest.mark.parametrize(
    "messages", ['["hi"]', '[{"role": "user"}]', '[{"role": "user", "content": [3]}]', '"hi"', "[]"]
)
def test_conversations_that_are_none_are_named(tmp_path, messages):
    task = make_task("prompts", written(tmp_path, "prompts/val.jsonl", f'{{"messages": {messages}}}'), "val")
    with pytest.raises(InputError, match='line 1: "messages": want') as caught:
        task.examples()
    assert "\n" not in str(caught.value)


def test_a_model_without_a_template_continues_prompts_and_refuses_images(tmp_path):
    PROCESSOR.build_tokenizer().save(str(tmp_path / "tokenizer.json"))
    processor = Processor.from_directory(tmp_path)
    task = make_task("prompts", written(tmp_path, "prompts/val.jsonl", '{"prompt": "Read the top row."}'), "val")
    (example,) = task.examples()
    plain = processor.encode("Read the top row.").input_ids
    np.testing.assert_array_equal(encode_example(processor, example).input_ids, plain)
    pictured = dataclasses.replace(example, messages=user_turn("Read.", False), image=np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="takes no images"):
        encode_example(processor, pictured)


def test_missing_files_tokenizers_and_foreign_tokens_are_named(tmp_path):
    with pytest.raises(InputError, match=r"text/val.jsonl: no such file"):
        make_task("text", tmp_path, "val")
    task = make_task("text", written(tmp_path, "text/val.jsonl", '{"text": "words"}'), "val")
    with pytest.raises(InputError, match=r"no tokenizer.json"):
        encode_task(None, task, task.examples(), 4, vocabulary=16)
    task = make_task("text", written(tmp_path, "text/val.jsonl", '{"input_ids": [1, 99]}'), "val")
    with pytest.raises(InputError, match="token 99, outside the vocabulary of 16"):
        encode_task(None, task, task.examples(), 4, vocabulary=16)


def prompt_with(folder, *items):
    content = [{"type": "text", "text": "Read the top row."}, *items]
    line = json.dumps({"messages": [{"role": "user", "content": content}]})
    return make_task("prompts", written(folder, "prompts/val.jsonl", line), "val")


@pytest.mark.parametrize("form", ["path", "image", "image_url", "base64"])
def test_pictures_inside_the_messages_of_a_file_are_read(tmp_path, form):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8))
    (tmp_path / "prompts").mkdir()
    image.save(tmp_path / "prompts" / "a scene.png")
    data = base64.b64encode((tmp_path / "prompts" / "a scene.png").read_bytes()).decode()
    item = {
        "path": {"type": "image", "path": "a scene.png"},
        "image": {"type": "image", "image": "a scene.png"},
        "image_url": {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        "base64": {"type": "image", "base64": data},
    }[form]
    processor = Processor.from_directory(ASSETS / "digit_scenes_moe")
    task = prompt_with(tmp_path, item)
    (example,) = task.examples()
    asked = Example("0", user_turn("Read the top row.", False), np.asarray(image), None, "", "", 1)
    expected, prompt = encode_example(processor, asked), encode_example(processor, example)
    np.testing.assert_array_equal(prompt.input_ids, expected.input_ids)
    np.testing.assert_array_equal(prompt.pixel_values, expected.pixel_values)
    names = [path.name for path in task.inputs()]
    assert names == ["val.jsonl", *(["a scene.png"] if form in ("path", "image") else [])]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"type": "image"}, "line 1.*holds no picture"),
        ({"type": "image", "image": "https://x.org/a.png"}, "line 1.*nothing is downloaded"),
        ({"type": "image", "image": 5}, "line 1.*no image"),
        ({"type": "imgae", "image": "a.png"}, "line 1.*neither text nor an image"),
        ({"type": "image", "image": "missing.png"}, r"prompts/missing\.png: no such file"),
        ({"type": "image", "base64": "*"}, "not base64"),
        ({"type": "image", "base64": "AAAA"}, "not a readable image"),
    ],
)
def test_pictures_that_are_none_are_named(tmp_path, item, message):
    processor = Processor.from_directory(ASSETS / "digit_scenes_moe")
    with pytest.raises(InputError, match=message) as caught:
        encode_example(processor, prompt_with(tmp_path, item).examples()[0])
    assert "\n" not in str(caught.value)


def test_only_a_newline_ends_a_line(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "val.jsonl").write_bytes('\ufeff{"text": "a\u2028b\x85c"}\r\n{"text": "d"}'.encode())
    documents = make_task("text", tmp_path, "val").examples()
    assert [document.text for document in documents] == ["a\u2028b\x85c", "d"]
