"""Chat templates: what transformers gives to them, which of several is used, and the limits they run under."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.processing import Processor
from expertflow_jax.processing.templates import ChatTemplate

GOLDENS = Path(__file__).parents[1] / "goldens" / "processor"
TURN = [{"role": "user", "content": "hello"}]


def rendered(source, messages=TURN, **special_tokens):
    return ChatTemplate(source, "model").render(messages, special_tokens, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% if tools is not none %}TOOLS{{ tools | tojson }}{% endif %}.", "."),
        ("{{ tools is none }} {{ documents is none }} {{ xyz is defined }}", "True True False"),
        ("{{ tools | tojson }}", "null"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "hello!"),
        ("{%- generation -%}\n a \n{%- endgeneration -%}", "a"),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 2 %}{% break %}{% endif %}{{ i }}"
            "{% endfor %}",
            "02",
        ),
        ("  {% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
        ("{{ {'b': 'é<', 'a': 1} | tojson }}", '{"b": "é<", "a": 1}'),
        ("{{ {'b': 'é', 'a': 1} | tojson(sort_keys=true, ensure_ascii=true) }}", '{"a": 1, "b": "\\u00e9"}'),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", "[1,2]"),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{% set ns = namespace(a=1) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}", "4"),
        ("{{ dict(a=1) | tojson }}", '{"a": 1}'),
        ("{{ strftime_now('%%') }}", "%"),
        ("{{ bos_token }}{{ image_token }}", "<s><image>"),
        ("{{ messages[0].content.upper() }}", "HELLO"),
        ("{{ add_generation_prompt }}", "True"),
    ],
)
def test_as_in_transformers(source, text):
    assert rendered(source, bos_token="<s>", image_token="<image>") == text


def test_messages_without_what_is_none():
    messages = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}], "reasoning": "well"}]
    source = "{{ 'content' in messages[0] }} {{ messages[0].reasoning_content }} {{ messages[0].thinking }}"
    assert rendered(source, messages) == "False well well"


def test_templates_see_pictures_as_placeholders():
    messages = [{"role": "user", "content": [{"type": "image", "image": Path("secret")}]}]
    assert rendered("{{ messages[0].content[0].image }}", messages) == "<PosixPath>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**10 }}",
        "{% set n = 10 %}{{ 'a' * n**10 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ messages | tojson * 9999 }}{% endfor %}",
        pytest.param("{{ lipsum(n=10**7) }}", marks=pytest.mark.slow),
        "{{ range(10**9) | list }}",
        "{% set ns = namespace(a='aaaa') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}",
        "{{ 'a'.center(10**10) }}",
        "{{ '%010000000000d' % 5 }}",
        "{{ 10 ** (10 ** 10) }}",
        pytest.param(
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
            marks=pytest.mark.slow,
        ),
        "{% for i in range(90000) %}{{ 'a' * 1000 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages.__class__.__mro__ }}",
        "{% set ns = namespace(__class__=1) %}",
        "{{ raise_exception('no\nsuch\nrole') }}",
        "{{ nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ 'a' | no_such_filter }}",
        "{% include 'a' %}",
    ],
)
def test_every_template_ends(source):
    with pytest.raises(InputError, match="refuses these messages") as caught:
        rendered(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert rendered("{{ messages[0].content }}") == "hello"  # whatever the one before did


@pytest.mark.parametrize(
    "source", ["{{ " + "(" * 5000 + ")" * 5000 + " }}", "{{ " + "9" * 5000 + " }}", "{{", 5, "a" * 2**21]
)
def test_templates_that_do_not_parse(source):
    with pytest.raises(InputError, match="does not parse") as caught:
        ChatTemplate(source, "model")
    assert "\n" not in str(caught.value)


@pytest.fixture
def model(tmp_path):
    shutil.copytree(GOLDENS, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    return tmp_path / "model"


def prompt(model):
    return Processor.from_directory(model).apply_chat_template(TURN)


def write_settings(model, template):
    file = model / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))


def test_which_of_several(model):
    assert not Processor.from_directory(model).has_template
    write_settings(model, [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "list"}])
    assert prompt(model) == "list"
    write_settings(model, {"default": "object"})
    assert prompt(model) == "object"
    (model / "processor_config.json").write_text('{"chat_template": "processor"}')
    assert prompt(model) == "processor"
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "default.jinja").write_text("folder")
    assert prompt(model) == "folder"
    (model / "chat_template.json").write_text('{"chat_template": "legacy"}')
    assert prompt(model) == "legacy"
    (model / "chat_template.jinja").write_text("file")
    assert prompt(model) == "file"


@pytest.mark.parametrize("template", [[{"x": 1}], [5], 5, [{"name": "tool_use", "template": "t"}], {}, [], True])
def test_settings_that_are_no_template(model, template):
    write_settings(model, template)
    with pytest.raises(InputError, match=r"tokenizer_config\.json") as caught:
        Processor.from_directory(model)
    assert "\n" not in str(caught.value)


def test_named_templates_without_a_default(model):
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "rag.jinja").write_text("x")
    with pytest.raises(InputError, match=r"rag.*no default"):
        Processor.from_directory(model)


def test_threads_share_the_process():
    template = ChatTemplate("{{ messages[0].content }}", "model")

    def ask(number):
        return template.render([{"role": "user", "content": str(number)}], {}, True)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, range(40))) == [str(number) for number in range(40)]


ALONE = """
import os, signal, threading
from expertflow_jax.processing.templates import RENDERER
render = RENDERER.ask
print(render("{{ x }}", {"x": 1}))
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    render("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", {})
except KeyboardInterrupt:
    print("interrupted")
print(render("{{ x }}", {"x": 2}))
if not os.fork():
    os._exit(int(render("{{ x }}", {"x": 3})))
print(os.waitstatus_to_exitcode(os.wait()[1]), render("{{ x }}", {"x": 4}), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_interrupt_a_fork_and_a_kill():
    """No answer is taken for another's, and the process that renders ends with its owner: it closes its pipe."""
    ended = subprocess.run([sys.executable, "-c", ALONE], stdout=subprocess.PIPE, text=True, timeout=60)
    assert ended.stdout.split() == ["1", "interrupted", "2", "3", "4"]
