"""Whatever a checkpoint's preprocessor, tokenizer and template files say: an answer or one line, and soon."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expertflow_jax.errors import InputError
from expertflow_jax.processing import Processor, split_pictures

pytestmark = pytest.mark.slow

GOLDENS = Path(__file__).parents[1] / "goldens"
TURN = [{"role": "user", "content": [{"type": "text", "text": "hello"}, {"type": "image"}]}]
COMMON = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

numbers = st.one_of(
    st.integers(-2, 40),
    st.integers(),
    st.floats(),
    st.sampled_from([0, 1, 2, 14, 28, 3e8, 1e12, 2**31, 2**63, 10**400]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
tokens = st.one_of(
    values,
    st.sampled_from(["<|im_end|>", "green", "", " ", "\ud800", "hello"]),
    st.fixed_dictionaries(
        {"content": st.one_of(st.text(max_size=6), values)}, optional={"lstrip": values, "special": values}
    ),
)
preprocessors = st.dictionaries(
    st.sampled_from([
        "patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels", "size", "image_mean",
        "image_std", "rescale_factor", "do_resize", "do_rescale", "do_normalize", "resample", "max_image_size",
        "min_image_size",
        "split_image", "split_resolutions", "image_processor_type",
    ]),
    st.one_of(
        values,
        numbers,
        st.lists(numbers, min_size=3, max_size=3),
        st.lists(st.lists(st.integers(1, 2000), min_size=2, max_size=2), max_size=3),
        st.fixed_dictionaries({"shortest_edge": numbers, "longest_edge": numbers}),
    ),
    max_size=3,
)  # fmt: skip
tokenizers = st.fixed_dictionaries(
    {},
    optional={
        "eos_token": tokens,
        "bos_token": tokens,
        "image_token": tokens,
        "add_bos_token": values,
        "split_special_tokens": values,
        "extra_special_tokens": st.one_of(
            tokens, st.lists(tokens, max_size=3), st.dictionaries(st.text(max_size=4), tokens)
        ),
        "additional_special_tokens": st.one_of(values, st.lists(tokens, max_size=3)),
        "added_tokens_decoder": st.one_of(
            values, st.dictionaries(st.one_of(st.integers(-1, 400).map(str), st.text(max_size=3)), tokens, max_size=3)
        ),
        "chat_template": st.one_of(values, st.lists(st.fixed_dictionaries({"name": values, "template": values}))),
    },
)
atoms = st.sampled_from([
    "messages", "tools", "'a'", "5", "10 ** 9", "messages[0]", "range(9999)", "ns.a", "loop.index", "none", "bos_token",
    "messages | tojson", "'a' * 10 ** 9", "lipsum(n=3)", "f()", "namespace(a=1)", "dict(a=1)", "x", "caller()", "''",
])  # fmt: skip
expressions = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from([" + ", " * ", " ~ ", " ** ", " % ", " in ", " // "]), inner).map("".join),
        st.tuples(inner, st.sampled_from([
            "list", "join", "center(99999)", "length", "sum", "tojson(indent=4)", "batch(2)", "sort",
            "replace('a', 'aaaaaaaaa')", "string", "indent(999)", "map('upper')", "groupby('a')", "unique", "xmlattr",
            "pprint", "wordwrap(1)",
        ])).map(lambda parts: f"({parts[0]}) | {parts[1]}"),
        inner.map("({})".format),
    ),
    max_leaves=6,
)  # fmt: skip
sources = st.recursive(
    st.one_of(expressions.map("{{{{ {} }}}}".format), st.text(max_size=10)),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(expressions, inner).map("{{% for x in {0[0]} %}}{0[1]}{{% endfor %}}".format),
        st.tuples(expressions, inner).map("{{% if {0[0]} %}}{0[1]}{{% endif %}}".format),
        st.tuples(expressions, inner).map(
            "{{% set ns = namespace(a={0[0]}) %}}{{% set ns.a = ns.a ~ ns.a %}}{0[1]}".format
        ),
        inner.map("{{% macro f() %}}{}{{% endmacro %}}{{{{ f() }}}}{{{{ f() }}}}".format),
        inner.map("{{% generation %}}{}{{% endgeneration %}}".format),
    ),
    max_leaves=5,
)


def use(model):
    """All that is done with a processor; a refusal is one short line."""
    try:
        processor = Processor.from_directory(model)
        text = processor.apply_chat_template(TURN) if processor.has_template else "<|image_pad|>"
        inputs = processor.encode(text, [np.zeros((48, 48, 3), np.uint8)])
        processor.decode(inputs.input_ids)
    except InputError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert inputs.pixel_values is None or np.isfinite(inputs.pixel_values).all()
    assert "\n" not in refusal
    assert len(refusal) < 1500


@pytest.fixture(params=["processor", "padded_processor"])
def model(request, tmp_path):
    shutil.copytree(GOLDENS / request.param, tmp_path / "model", dirs_exist_ok=True)
    return tmp_path / "model"


def rewritten(model, name, changes):
    """The file with some values changed, until it is written back."""
    file = model / name
    whole = file.read_text()
    file.write_text(json.dumps(json.loads(whole) | changes))
    return file, whole


@COMMON
@given(preprocessors)
def test_preprocessor_values(model, changes):
    file, whole = rewritten(model, "preprocessor_config.json", changes)
    use(model)
    file.write_text(whole)


@COMMON
@given(tokenizers)
def test_tokenizer_settings(model, changes):
    file, whole = rewritten(model, "tokenizer_config.json", changes)
    use(model)
    file.write_text(whole)


@COMMON
@given(
    st.sampled_from(["special_tokens_map", "added_tokens"]), tokenizers | st.dictionaries(st.text(max_size=4), values)
)
def test_older_tokenizer_files(model, name, contents):
    file = model / f"{name}.json"
    file.write_text(json.dumps(contents))
    use(model)
    file.unlink()


@settings(COMMON, max_examples=100)
@given(sources)
def test_templates(model, source):
    try:
        source.encode()
    except UnicodeEncodeError:
        return
    (model / "chat_template.jinja").write_text(source, encoding="utf-8")
    use(model)


item_values = st.one_of(values, st.sampled_from(["text", "image", "image_url", "data:image/png;base64,AA"]))
item_keys = st.sampled_from(["type", "text", "image", "url", "image_url", "base64"])


@COMMON
@given(st.lists(st.one_of(values, st.dictionaries(item_keys, item_values))))
def test_content_items(items):
    try:
        messages, pictures = split_pictures([{"role": "user", "content": items}], "messages")
    except InputError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert len(messages[0]["content"]) == len(items)
        assert sum(item.get("type") == "image" for item in messages[0]["content"]) == len(pictures)
    assert "\n" not in refusal
