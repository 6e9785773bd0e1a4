"""The benchmark's questions are right, balanced and reproducible; the training stream is a function of its step."""

import collections

import numpy as np
import pytest

from expertflow_jax.tasks.digit_scenes import questions, scenes
from expertflow_jax.tasks.digit_scenes.items import make_items
from expertflow_jax.tasks.digit_scenes.processor_files import PROCESSOR
from expertflow_jax.tasks.word_processor import END, UNKNOWN

SCENE = scenes.Scene(digits=(3, -1, 8, 1, 1, -1, 5, -1, 9), colors=(0, -1, 1, 0, 1, -1, 0, -1, 1))


def asked(kind: str, scene: scenes.Scene = SCENE, draws: int = 200) -> dict[str, str]:
    """text -> answer over many draws; a text always has one answer."""
    found: dict[str, str] = {}
    for seed in range(draws):
        question = questions.QUESTION_TYPES[kind](scene, np.random.default_rng(seed))
        if question is not None:
            assert found.setdefault(question.text, question.answer) == question.answer
            if question.choices:
                assert question.answer in question.choices
                assert len(set(question.choices)) == len(question.choices)
    return found


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("digit_at", "What digit is at the top right?", "8"),
        ("color_at", "What color is the bottom left?", "red"),
        ("color_of", "What color is the 9?", "green"),
        ("count_color", "How many red digits are there?", "3"),
        ("count_digit", "How many digits are 1?", "2"),
        ("count_row", "How many digits are in the bottom row?", "2"),
        ("exists", "Is there a green 1?", "yes"),
        ("exists", "Is there a green 3?", "no"),
        ("largest", "What is the largest digit?", "9"),
        ("smallest", "What is the smallest digit?", "1"),
        ("neighbour", "What digit is above the red 5?", "1"),
        ("neighbour", "What digit is right of the red 1?", "1"),
        ("same_color", "Do top left and bottom left have the same color?", "yes"),
        ("larger", "Is top right larger than bottom right?", "no"),
        ("read_row", "Read the top row.", "3 blank 8"),
        ("read_column", "Read the right column.", "8 blank 9"),
        ("row_colors", "Name the colors of the middle row.", "red green blank"),
        ("read_color", "Read the green digits.", "8 1 9"),
    ],
)
def test_answers(kind, text, answer):
    assert asked(kind)[text] == answer


def test_every_type_is_covered_above_and_occurs_in_a_split():
    counts = collections.Counter(item.question_type for item in make_items("val", 1500, seed=0))
    assert set(counts) == set(questions.QUESTION_TYPES)
    assert len(questions.QUESTION_TYPES) >= 8
    several = sum(counts[kind] for kind in questions.READING_TYPES)
    assert several / 1500 >= 0.25  # answers of several tokens carry weight


def test_yes_and_no_are_about_equally_often_right():
    items = [item for item in make_items("val", 4000, seed=1) if item.answer_type == "yes/no"]
    assert 0.4 < np.mean([item.answer == "yes" for item in items]) < 0.6


def test_scans_of_train_and_val_are_disjoint_and_complete():
    train, _ = scenes.scan_split("train")
    val, digits = scenes.scan_split("val")
    assert len(train) + len(val) == 1797
    assert min(np.bincount(digits)) >= 30
    as_bytes = {scan.tobytes() for scan in train}
    assert sum(scan.tobytes() in as_bytes for scan in val) == 0


def test_a_split_is_a_function_of_its_seed():
    first, again = make_items("val", 40, seed=3), make_items("val", 40, seed=3)
    assert [(i.question, i.answer) for i in first] == [(i.question, i.answer) for i in again]
    assert all((a.image == b.image).all() for a, b in zip(first, again, strict=True))
    other = make_items("val", 40, seed=4)
    assert [i.question for i in first] != [i.question for i in other]


def test_tokenizer_knows_every_word_and_reads_back_answers():
    tokenizer = PROCESSOR.build_tokenizer()
    unknown = tokenizer.token_to_id(UNKNOWN)
    for item in make_items("val", 400, seed=0):
        for text in (item.question, item.answer, *item.choices):
            assert unknown not in tokenizer.encode(text).ids, text
        assert tokenizer.decode(tokenizer.encode(item.answer + END).ids) == item.answer
