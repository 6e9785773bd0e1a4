"""Token ids as transformers 5.24 makes them (its answers were noted), whatever the files beside tokenizer.json say."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from expertflow_jax.errors import InputError
from expertflow_jax.processing import Processor, text_codec
from expertflow_jax.processing.apart import Apart
from expertflow_jax.processing.tokenizer_worker import MEMORY

GOLDENS = Path(__file__).parents[1] / "goldens" / "processor"
QUESTION = "How many green cubes are there in this picture?"


def changed(folder, settings=None, tokenizer=None, **files):
    """The golden's tokenizer with some settings of tokenizer_config.json and tokenizer.json, and further files."""
    model = folder / "model"
    shutil.copytree(GOLDENS, model, dirs_exist_ok=True)
    for name, values in (("tokenizer_config.json", settings), ("tokenizer.json", tokenizer)):
        file = model / name
        file.write_text(json.dumps(json.loads(file.read_text()) | (values or {})))
    for name, values in files.items():
        (model / f"{name}.json").write_text(json.dumps(values))
    return model


def ids(model, text):
    return Processor.from_directory(model).encode(text, add_special_tokens=False).input_ids.tolist()


def chat_ids(model):
    processor = Processor.from_directory(model)
    return ids(model, processor.apply_chat_template([{"role": "user", "content": QUESTION}]))


TRUNCATION = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}  # fmt: skip


@pytest.mark.parametrize("settings", [{"truncation": TRUNCATION}, {"padding": PADDING}])
def test_truncation_and_padding_are_for_training(tmp_path, settings):
    assert len(chat_ids(changed(tmp_path, tokenizer=settings))) == 39


def test_special_tokens_may_be_split(tmp_path):
    assert len(chat_ids(changed(tmp_path, {"split_special_tokens": True}))) == 69


@pytest.mark.parametrize(
    ("settings", "files"),
    [
        ({"additional_special_tokens": ["green"]}, {}),
        ({"extra_special_tokens": ["green"]}, {}),
        ({"extra_special_tokens": {"colour_token": "green"}}, {}),
        ({"colour_token": "green"}, {}),
        ({"colour_token": {"__type": "AddedToken", "content": "green"}}, {}),
        ({"added_tokens_decoder": {"7": {"content": "green", "special": True}}}, {}),
        ({"added_tokens_decoder": {"900": {"content": "green", "special": False}}}, {}),
        ({"sep_token": "green"}, {}),
        ({}, {"special_tokens_map": {"additional_special_tokens": ["green"]}}),
        ({}, {"special_tokens_map": {"sep_token": {"content": "green", "lstrip": False}}}),
        ({}, {"added_tokens": {"green": 320}}),
    ],
)
def test_tokens_that_only_other_files_name(tmp_path, settings, files):
    model = changed(tmp_path, settings, **files)
    assert ids(model, "green") == [320]
    assert len(chat_ids(model)) == 39


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, [71, 227, 320, 227, 75, 92, 281, 320]),
        ({"lstrip": True}, [71, 320, 227, 75, 92, 281, 320]),
        ({"rstrip": True}, [71, 227, 320, 75, 92, 281, 320]),
        ({"single_word": True}, [71, 227, 320, 227, 75, 92, 281, 284, 280]),
        ({"normalized": False}, [71, 227, 320, 227, 75, 92, 281, 320]),
        ({"lstrip": True, "rstrip": True, "special": True}, [71, 320, 75, 92, 281, 320]),
    ],
)
def test_flags(tmp_path, flags, expected):
    model = changed(tmp_path, {"added_tokens_decoder": {"320": {"content": "green"} | flags}})
    assert ids(model, "a green evergreen") == expected


def test_only_special_tokens_are_left_out_of_an_answer(tmp_path):
    tokens = [71, 227, 320, 75]
    for special, text in ((False, "a greene"), (True, "a e")):
        model = changed(tmp_path, {"added_tokens_decoder": {"320": {"content": "green", "special": special}}})
        assert Processor.from_directory(model).decode(tokens) == text


@pytest.mark.parametrize(
    "eos", ["<|im_end|>", {"content": "<|im_end|>"}, {"__type": "AddedToken", "content": "<|im_end|>"}]
)
def test_every_form_of_a_role(tmp_path, eos):
    assert Processor.from_directory(changed(tmp_path, {"eos_token": eos, "bos_token": None})).eos_token_ids == (2,)


def test_switches_are_no_tokens(tmp_path):
    model = changed(tmp_path, {"add_bos_token": True, "add_eos_token": False, "legacy_token": 5})
    assert len(chat_ids(model)) == 39


def test_no_end(tmp_path):
    assert Processor.from_directory(changed(tmp_path, {"eos_token": None})).eos_token_ids == ()


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token": {"a": 1}},
        {"eos_token": {"content": "x", "lstrip": "yes"}},
        {"eos_token": {"content": 5}},
        {"eos_token": 5},
        {"eos_token": ["<|im_end|>"]},
        {"pad_token": True},
        {"bos_token": "\ud800"},
        {"extra_special_tokens": 5},
        {"extra_special_tokens": "green"},
        {"extra_special_tokens": [5]},
        {"extra_special_tokens": {"colour": 5}},
        {"additional_special_tokens": [{"a": 1}]},
        {"added_tokens_decoder": []},
        {"added_tokens_decoder": {"x": {"content": "green"}}},
        {"added_tokens_decoder": {"320": "green"}},
        {"added_tokens_decoder": {"320": {"content": "green", "colour": 1}}},
        {"split_special_tokens": "no"},
    ],
)
def test_malformed_tokens_are_named(tmp_path, settings):
    with pytest.raises(InputError, match=rf"tokenizer_config\.json: {next(iter(settings))}") as caught:
        Processor.from_directory(changed(tmp_path, settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("special_tokens_map", {"eos_token": 5}),
        ("special_tokens_map", {"additional_special_tokens": [5]}),
        ("special_tokens_map", []),
        ("added_tokens", {"green": "x"}),
        ("added_tokens", {"green": -1}),
    ],
)
def test_malformed_older_files_are_named(tmp_path, name, values):
    with pytest.raises(InputError, match=rf"{name}\.json|_special_tokens") as caught:
        Processor.from_directory(changed(tmp_path, **{name: values}))
    assert "\n" not in str(caught.value)


def test_text_that_is_none(tmp_path):
    with pytest.raises(InputError, match="cannot read the text"):
        Processor.from_directory(GOLDENS).encode("half a pair: \ud83d")


def test_marked_generations_count_as_what_they_hold(tmp_path):
    model = changed(tmp_path)
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert len(chat_ids(model)) == 38


def own_expressions(folder, step, pattern, content=""):
    """The golden's tokenizer with a regular expression in one of its steps."""
    values = json.loads((GOLDENS / "tokenizer.json").read_text())
    new = {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
    if step == "pre_tokenizer":
        new = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    plural = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}[step]
    steps = [new, values[step]] if step != "decoder" else [values[step], new]
    return changed(folder, tokenizer={step: {"type": "Sequence", plural: steps}})


@pytest.mark.parametrize("step", ["normalizer", "pre_tokenizer", "decoder"])
def test_a_tokenizer_of_own_expressions_gives_the_ids_and_texts_of_the_library(tmp_path, step):
    model = own_expressions(tmp_path, step, "(gr|cu)(e+|b)", "x")
    (model / "added_tokens.json").write_text(json.dumps({"picture": 320}))
    processor, library = Processor.from_directory(model), Tokenizer.from_file(str(model / "tokenizer.json"))
    library.add_tokens(["picture"])
    expected = library.encode(QUESTION, add_special_tokens=False).ids
    assert 320 in expected
    assert processor.encode(QUESTION, add_special_tokens=False).input_ids.tolist() == expected
    assert processor.decode(expected) == library.decode(expected)


@pytest.mark.parametrize("step", ["normalizer", "pre_tokenizer"])
@pytest.mark.parametrize("text", ["a" * 40, ("a" * 21 + " ") * 400])
def test_an_expression_without_end_is_ended(tmp_path, monkeypatch, step, text):
    monkeypatch.setattr(text_codec, "TOKENIZERS", Apart("tokenizer_worker.py", MEMORY, 2))
    processor = Processor.from_directory(own_expressions(tmp_path, step, "(a+)+b"))
    with pytest.raises(InputError, match=r"tokenizer\.json.*(retry-limit|more than 2 s)") as caught:
        processor.encode(text)
    assert "\n" not in str(caught.value)
    assert len(processor.encode("How many?").input_ids)


def test_dropout_is_for_training(tmp_path):
    model = json.loads((GOLDENS / "tokenizer.json").read_text())["model"]
    assert ids(changed(tmp_path, tokenizer={"model": model | {"dropout": 0.9}}), QUESTION) == ids(GOLDENS, QUESTION)


def test_many_extra_tokens_are_read_soon(tmp_path):
    many = [f"<{i}>" for i in range(20_000)]
    assert ids(changed(tmp_path, {"extra_special_tokens": many}), "<7>") == [327]


@pytest.mark.parametrize(
    "step",
    [
        {"type": "Replace", "pattern": {"String": "l"}, "content": "l" * 1000},
        {"type": "Replace", "pattern": {"String": ""}, "content": "aaaa"},
        {"type": "Prepend", "prepend": "x" * 1_000_000},
        {"type": "ByteLevel"},
    ],
)
def test_a_text_that_grows_without_end_is_ended(tmp_path, monkeypatch, step):
    monkeypatch.setattr(text_codec, "TOKENIZERS", Apart("tokenizer_worker.py", MEMORY // 4, 2))
    steps = {"normalizer": {"type": "Sequence", "normalizers": [step] * 40}}
    processor = Processor.from_directory(changed(tmp_path, tokenizer=steps))
    with pytest.raises(InputError, match=r"tokenizer\.json.*cannot read the text") as caught:
        processor.encode("hello é")
    assert "\n" not in str(caught.value)


def test_the_steps_of_published_tokenizers_run_in_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(text_codec, "TOKENIZERS", None)
    qwen = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": qwen}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    model = changed(tmp_path, tokenizer={"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}})
    assert len(ids(model, QUESTION))
    mistral = {
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]
    }
    assert len(ids(changed(tmp_path / "other", tokenizer={"normalizer": {"type": "Sequence"} | mistral}), QUESTION))
