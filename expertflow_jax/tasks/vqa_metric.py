"""The official VQA accuracy (GT-Vision-Lab's evaluation code), its text processing and quirks included.

An answer's accuracy is the mean over the ten annotators of min(1, matches among the other nine / 3). Only where the
annotators differ are answers normalised; where all ten agree, the prediction must match to the letter.
"""

import re
from collections.abc import Sequence

_PUNCTUATION = (*';/[]"{}()=+\\_-><@`,?!',)
# The lookbehind is spelled wrongly in the official code, and so means "not followed by '<=' and a digit"; the third
# argument of its `sub` is a count by accident: at most 32 full marks go.
_FULL_MARK = re.compile(r"(?!<=\d)(\.)(?!\d)")
_MOST_FULL_MARKS = 32
_COMMA_IN_NUMBER = re.compile(r"(\d)(,)(\d)")
_NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    """Forms with one apostrophe forgotten, to the full form."""
    forms = {"somebody'd": "somebodyd"}  # the official table has this one the wrong way round
    for full in _CONTRACTED.split():
        for place in (i for i, letter in enumerate(full) if letter == "'"):
            forms[full[:place] + full[place + 1 :]] = full
    return forms


_CONTRACTIONS = _contractions()


def _strip_punctuation(text: str) -> str:
    out = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or _COMMA_IN_NUMBER.search(text) else " ")
    return _FULL_MARK.sub("", out, count=_MOST_FULL_MARKS)


def _normalise_words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Official accuracy of one answer, in [0, 1].

    Args:
      prediction: what the model said.
      answers: of the annotators (ten in VQA v2).
    """
    prediction, answers = _plain(prediction), [_plain(answer) for answer in answers]
    if len(set(answers)) > 1:
        answers = [_normalise_words(_strip_punctuation(answer)) for answer in answers]
        prediction = _normalise_words(_strip_punctuation(prediction))
    matches = sum(answer == prediction for answer in answers)
    others = [matches - (answer == prediction) for answer in answers]
    return sum(min(1.0, n / 3) for n in others) / len(answers)
