"""Choices are read from answers as two versions of VLMEvalKit read them; cases were run through its own code."""

import pytest

from expertflow_jax.tasks.choice_rules import RULES, extract_choice

OPTIONS = {"A": "red ball", "B": "blue", "C": "green", "D": "no color"}
SKY = {"A": "blue sky", "B": "red"}
OLD, NEW = RULES


@pytest.mark.parametrize(
    ("answer", "options", "old", "new"),
    [
        ("answer is b", OPTIONS, None, "B"),
        ("The answer is B and it is definitely not the other one here", OPTIONS, None, "B"),
        ("The answer is blue sky", SKY, "A", "B"),  # the newer rule has no word boundary
        ("The answer is a dog", OPTIONS, None, "A"),
        ("The correct answer is **C**. Here is why: it looks so", OPTIONS, None, "C"),
        ("answer is e, surely not one of these", OPTIONS, None, None),
        ("b", OPTIONS, None, None),
        ("B/C", OPTIONS, None, None),
        ("答案是B。", OPTIONS, None, None),
        ("Failed to obtain answer via API blue", OPTIONS, "B", "B"),
        ("Failed to obtain answer via API B", {"A": "ab", "B": "cd" * 20}, None, None),
        ("A and B", OPTIONS, None, None),
        ("None", OPTIONS, None, None),
    ],
)
def test_two_versions(answer, options, old, new):
    assert extract_choice(answer, options, OLD) == old
    assert extract_choice(answer, options, NEW) == new
