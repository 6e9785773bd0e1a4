"""The VQA metric gives what the official code gives: expected values were computed with GT-Vision-Lab's vqaEval.py."""

import pytest

from expertflow_jax.tasks.vqa_metric import vqa_accuracy

CASES = [
    # all annotators agree: nothing is normalised
    ("yes", {"yes": 10}, 1.0),
    (" yes\n", {"yes": 10}, 1.0),
    ("Yes", {"yes": 10}, 0.0),
    ("yes.", {"yes": 10}, 0.0),
    ("no", {"yes": 10}, 0.0),
    # min(1, matches among the other nine / 3), averaged over who is left out
    ("red", {"red": 1, "blue": 9}, 0.3),
    ("red", {"red": 2, "blue": 8}, 0.6),
    ("red", {"red": 3, "blue": 7}, 0.9),
    ("red", {"red": 4, "blue": 6}, 1.0),
    # number words and articles
    ("two", {"2": 8, "3": 2}, 1.0),
    ("None", {"0": 5, "1": 5}, 1.0),
    ("eleven", {"11": 5, "1": 5}, 0.0),
    ("The Dog", {"dog": 6, "cat": 4}, 1.0),
    ("", {"the": 6, "cat": 4}, 1.0),
    # contractions, with the entry that the official table has the wrong way round, and one that lower case hides
    ("dont know", {"don't know": 6, "no": 4}, 1.0),
    ("somebody'd", {"somebodyd": 6, "no": 4}, 1.0),
    ("Id've", {"i'd've": 6, "no": 4}, 0.0),
    ("it's", {"its": 6, "no": 4}, 0.0),
    # punctuation: a mark becomes a space, but nothing beside a space or where a comma stands in a number
    ("red/blue", {"red blue": 6, "red": 4}, 1.0),
    ("red / blue", {"red blue": 6, "red": 4}, 1.0),
    ("left-hand", {"left hand": 6, "left": 4}, 1.0),
    ("2,000", {"2000": 6, "20": 4}, 1.0),
    ("2,000 km/h", {"2000 kmh": 6, "20": 4}, 1.0),
    ("what?", {"What ?": 6, "no": 4}, 1.0),
    ("100%", {"100": 6, "no": 4}, 0.0),
    # full marks go unless a digit follows; at most 32 of them
    ("u.s.a.", {"usa": 6, "us": 4}, 1.0),
    ("10.", {"10": 6, "1": 4}, 1.0),
    ("3.5", {"35": 6, "no": 4}, 0.0),
    (".5", {"5": 6, "no": 4}, 0.0),
    ("." * 32, {"": 6, "no": 4}, 1.0),
    ("." * 34, {"": 6, "no": 4}, 0.0),
    ("black\tdog", {"black dog": 6, "dog": 4}, 1.0),
]


@pytest.mark.parametrize(("prediction", "answers", "expected"), CASES)
def test_official_values(prediction, answers, expected):
    ten = [answer for answer, times in answers.items() for _ in range(times)]
    assert vqa_accuracy(prediction, ten) == pytest.approx(expected)
