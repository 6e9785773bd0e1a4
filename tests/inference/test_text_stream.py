"""The text of an answer as it comes: for any tokens and any decoder it is the decoded answer in the end, piece by
piece, and no piece has to be taken back."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from expertflow_jax.inference.text_stream import INCOMPLETE, TextStream


def decode_bytes(ids):
    """As byte-level tokenizers (Qwen) decode: the bytes together."""
    return bytes(ids).decode("utf-8", errors="replace")


PIECES = ["\u2581the", "\u2581", "a", "b", "[/", "IN", "ST", "]", "\u5b57", INCOMPLETE, "\u2581\u2581"]
VOCABULARY = [f"<0x{byte:02X}>" for byte in range(256)] + PIECES


def llama_decoder():
    """A tokenizer that decodes as Llama's and Mixtral's do: byte tokens where the vocabulary has no piece."""
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(VOCABULARY)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer.decode


def is_byte(token):
    return token < 256


def run(stream, ids):
    """The pieces that come for each id until a stop text, and at the end."""
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    else:
        pieces.append(stream.finish())
    return pieces


def before_stop(text, stops):
    """Of the text up to the first stop text that is complete: reading on changes nothing."""
    for end in range(len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return text[: min(begins)]
    return text


texts = st.text(st.sampled_from("ab[/INST] \u00e9\u5b57\U0001f642"), max_size=12)
stop_texts = st.lists(st.text(st.sampled_from("ab[/]\u00e9\u5b57" + INCOMPLETE), min_size=1, max_size=4), max_size=3)
fallback_tokens = st.integers(0, len(VOCABULARY) - 1) | st.sampled_from(list("\u5b57\n".encode()))
byte_lists = st.one_of(
    st.lists(st.integers(0, 255), max_size=24),
    texts.map(lambda text: list(text.encode())),
    st.tuples(texts, st.integers(0, 3)).map(lambda cut: list(cut[0].encode())[: -cut[1] or None]),
)


@given(byte_lists, stop_texts)
@example(list(b"/[["), ["[", "/[["])
@settings(max_examples=300, deadline=None)
def test_bytes_put_together_are_the_answer(ids, stops):
    stream = TextStream(decode_bytes, stops)
    pieces = run(stream, ids)
    assert "".join(pieces) == stream.text
    # Tokens that come when a stop text is complete belong to it or stand behind it.
    assert stream.text == before_stop(decode_bytes(ids), stops)


@given(st.lists(fallback_tokens, max_size=16), stop_texts)
@settings(max_examples=300, deadline=None)
def test_byte_fallback_put_together_is_the_answer(ids, stops):
    decode = llama_decoder()
    stream = TextStream(decode, stops, is_byte)
    pieces = run(stream, ids)
    read = ids[: len(pieces)]  # behind a stop text, a byte could undo characters that stand before it
    assert "".join(pieces) == stream.text == before_stop(decode(read), stops)


@given(st.lists(texts, max_size=6), stop_texts)
@settings(max_examples=200, deadline=None)
def test_no_decoder_makes_pieces_and_text_disagree(answers, stops):
    """A decoder that gives any text at all for any number of tokens."""
    stream = TextStream(lambda ids: answers[len(ids) - 1] if ids else "", stops)
    assert "".join(run(stream, range(len(answers)))) == stream.text


def test_a_character_comes_when_it_is_whole():
    stream = TextStream(decode_bytes)
    assert [stream.push(byte) for byte in "\u5b57\u00e9".encode()] == ["", "", "\u5b57", "", "\u00e9"]
    assert stream.finish() == ""


def test_a_character_that_stays_incomplete_is_said_at_the_end():
    stream = TextStream(decode_bytes)
    assert run(stream, [*b"ab", 0xF0, 0x9F]) == ["a", "b", "", "", INCOMPLETE]


def test_a_byte_that_undoes_a_character_has_nothing_to_take_back():
    stream = TextStream(llama_decoder(), (), is_byte)
    assert "".join(run(stream, [*"\u5b57".encode(), 0xE5])) == INCOMPLETE * 4
    stream = TextStream(llama_decoder(), (), is_byte)
    pieces = run(stream, [*"\u5b57".encode(), VOCABULARY.index("a")])
    assert pieces == ["", "", "", "\u5b57a", ""]


def test_the_beginning_of_a_stop_text_waits():
    stream = TextStream(decode_bytes, ["[/INST]", "END"])
    assert run(stream, b"a[/Ib[E[/INST]c") == ["a", "", "", "", "[/Ib", "", "[", "E", "", "", "", "", "", ""]
    assert (stream.text, stream.stopped) == ("a[/Ib[E", True)
    assert stream.push(ord("x")) == ""


def test_what_only_looked_like_a_stop_text_is_part_of_the_answer():
    stream = TextStream(decode_bytes, ["[/INST]"])
    assert "".join(run(stream, b"ok[/INS")) == "ok[/INS"
    assert not stream.stopped


@pytest.mark.parametrize(("text", "left"), [("abab", "abab"), ("ababc", ""), ("aababc", "a")])
def test_a_stop_text_that_begins_like_itself(text, left):
    assert "".join(run(TextStream(decode_bytes, ["ababc"]), text.encode())) == left
