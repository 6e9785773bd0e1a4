"""VQA accuracy by two evaluators: the official code, and lmms-eval's; quirks of their text processing included.

An answer's accuracy is the mean over the ten annotators of min(1, matches among the other nine / 3). The official code
normalises answers only where the annotators differ; where all ten agree, the prediction must match to the letter.
lmms-eval (as LAVIS, and LLaVA's converter of answers) always normalises both.
"""

import dataclasses
import re
from collections.abc import Sequence

OFFICIAL = "GT-Vision-Lab/VQA a013f00 (2021-03)"
LMMS_EVAL = "lmms-eval 75571cf (2026-08)"

_PUNCTUATION = (*';/[]"{}()=+\\_-><@`,?!',)
# The third argument of both evaluators' `sub` is a count by accident: at most 32 full marks go.
_MOST_FULL_MARKS = 32


@dataclasses.dataclass(frozen=True)
class _Punctuation:
    """How an evaluator finds punctuation.

    Attributes:
      full_mark: the lookbehind is spelled wrongly in both, and so means "not followed by '<=' and a digit".
      comma_in_number: where one is found, all punctuation goes without a space in its place.
    """

    full_mark: re.Pattern[str]
    comma_in_number: re.Pattern[str]

    def strip(self, text: str) -> str:
        """Without punctuation."""
        out = text
        for mark in _PUNCTUATION:
            beside_space = f"{mark} " in text or f" {mark}" in text
            out = out.replace(mark, "" if beside_space or self.comma_in_number.search(text) else " ")
        return self.full_mark.sub("", out, count=_MOST_FULL_MARKS)


_FULL_MARK = r"(?!<=\d)(\.)(?!\d)"
# The official code is written for Python 2, whose digits are ASCII; lmms-eval's are those of Unicode.
_OFFICIAL_PUNCTUATION = _Punctuation(re.compile(_FULL_MARK, re.ASCII), re.compile(r"(\d)(,)(\d)", re.ASCII))
_LMMS_PUNCTUATION = _Punctuation(re.compile(_FULL_MARK), re.compile(r"(?<=\d)(,)+(?=\d)"))
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


def _normalise_words(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _agreement(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the annotators of min(1, equal answers among the others / 3)."""
    matches = sum(answer == prediction for answer in answers)
    others = [matches - (answer == prediction) for answer in answers]
    return sum(min(1.0, n / 3) for n in others) / len(answers)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Official accuracy of one answer, in [0, 1].

    Args:
      prediction: what the model said.
      answers: of the annotators (ten in VQA v2).
    """
    prediction, answers = _plain(prediction), [_plain(answer) for answer in answers]
    if len(set(answers)) > 1:
        answers = [_normalise_words(_OFFICIAL_PUNCTUATION.strip(answer)) for answer in answers]
        prediction = _normalise_words(_OFFICIAL_PUNCTUATION.strip(prediction))
    return _agreement(prediction, answers)


def lmms_processed(text: str) -> str:
    """An answer as lmms-eval compares and submits it."""
    return _normalise_words(_LMMS_PUNCTUATION.strip(_plain(text)))


def lmms_vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """lmms-eval's accuracy of one answer, in [0, 1]: prediction and answers are always processed."""
    return _agreement(lmms_processed(prediction), [lmms_processed(answer) for answer in answers])


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """TextVQA's accuracy (MMF's processor of answers, which lmms-eval copies), in [0, 1]."""
    return _agreement(textvqa_processed(prediction), [textvqa_processed(answer) for answer in answers])


def textvqa_processed(text: str) -> str:
    """An answer as TextVQA's evaluator compares it: commas and question marks go first, and "'s" stands apart."""
    words = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return lmms_processed(words.strip())
