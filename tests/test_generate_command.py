"""`eval.generate` shows exactly the answer's text, on any standard output."""

import io
import itertools
import os
import sys
from pathlib import Path

import pytest
from scripted_model import (
    byte_level_ids,
    write_byte_fallback_tokenizer,
    write_byte_level_tokenizer,
    write_scripted_model,
)

from eval import generate
from expertflow_jax import OffloadedModel, cli, terminal

CONFIG = Path(__file__).parents[1] / "configs/generate.py"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model for each of these answers; the last one is cut in the middle of a character."""
    root = tmp_path_factory.mktemp("scripted")
    for name, text in (("markup", "ok[/INST]!"), ("index", "a[i]=7"), ("characters", "\u5b57\u00e9\U0001f642")):
        write_byte_level_tokenizer(root / name)
        write_scripted_model(root / name, byte_level_ids(text))
    write_byte_fallback_tokenizer(root / "fallback")
    write_scripted_model(root / "fallback", [2 + byte for byte in "\u5b57\u00e9".encode()])
    return root


def shown(monkeypatch, folder, *arguments, encoding="utf-8"):
    """What stands between the memory plan and the closing line on a standard output of this encoding."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", screen)
    argv = [f"--config={CONFIG}", f"--config.model={folder}", "--prompt=x", *arguments]
    assert (
        cli.run_command(generate.main, description="", needs_workdir=False, options=generate._options, argv=argv) == 0
    )
    screen.flush()
    text = screen.buffer.getvalue().decode(encoding)
    answer = text[text.index("\n", text.index("disk, ")) + 1 : text.index("\nfirst token after")]
    assert "tokens/s" in text.rpartition("\n")[0] or "first token" in text
    return answer


@pytest.mark.parametrize(
    ("model", "options", "answer"),
    [
        ("markup", [], "ok[/INST]!"),
        ("index", [], "a[i]=7"),
        ("characters", [], "\u5b57\u00e9\U0001f642"),
        ("fallback", [], "\u5b57\u00e9"),
        ("markup", ["--config.stop=('[/INST]',)"], "ok"),
        ("markup", ["--config.stop=('/INST]', 'k[x')"], "ok["),
        ("markup", ["--config.stop=('[/INST]?',)"], "ok[/INST]!"),
        ("characters", ["--config.max_new_tokens=4"], "\u5b57\ufffd"),
        ("fallback", ["--config.max_new_tokens=4"], "\ufffd" * 4),
    ],
)
def test_the_screen_shows_the_answer(monkeypatch, folders, model, options, answer):
    assert shown(monkeypatch, folders / model, *options) == answer


@pytest.mark.parametrize(("encoding", "answer"), [("ascii", "???"), ("latin-1", "?\u00e9?")])
def test_what_an_output_cannot_show_is_replaced(monkeypatch, folders, encoding, answer):
    assert shown(monkeypatch, folders / "characters", encoding=encoding) == answer


def test_a_terminal_does_not_obey_the_answer(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for screen, expected in ((Terminal(), "a\\x1b[2J\\x0d\n\té"), (io.StringIO(), "a\x1b[2J\r\n\té")):
        monkeypatch.setattr(sys, "stdout", screen)
        shown_part = terminal.Screen()
        shown_part.show(0, "a\x1b[2J")
        shown_part.show(0, "a\x1b[2J\r\n\té")
        assert screen.getvalue() == expected


def test_nobody_reads_the_output(monkeypatch, capfd, tmp_path):
    """As in `eval.generate ... | head -1`."""
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stdout", os.fdopen(write, "w"))
    config = tmp_path / "config.py"
    config.write_text("import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict()\n")
    argv = [f"--config={config}"]
    code = cli.run_command(lambda _: print("text"), description="", needs_workdir=False, argv=argv)
    assert code == 141
    assert capfd.readouterr().err == ""


def test_a_stream_only_grows_and_ends_with_the_answer(folders):
    for name, stop in (("characters", ()), ("markup", "/INST]"), ("markup", "[/INST]?"), ("fallback", ())):
        texts = [""]
        with OffloadedModel.from_pretrained(str(folders / name), max_tokens=32) as model:
            (answer,) = model.generate(
                "x", max_new_tokens=12, stop=stop, stream=lambda _, text, t=texts: t.append(text)
            )
        assert texts[-1] == answer.text
        assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
