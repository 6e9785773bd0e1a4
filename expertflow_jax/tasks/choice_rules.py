"""Which option an answer names, as VLMEvalKit reads it before it would ask a judge, in two of its versions."""

import re
from collections.abc import Mapping

RULES = {
    "vlmevalkit-2025-08": "VLMEvalKit c3371551 (2025-08), no judge",
    "vlmevalkit-2026-06": "VLMEvalKit a67ace50 (2026-06), no judge",
}
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_LAST_WORDS = 4  # a letter counts among these; earlier, "A" is likely to be the article
_API_FAILED = "Failed to obtain answer via API"
_ANSWER_IS = re.compile(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**")  # "is a dog" names A too: so it is there


def extract_choice(prediction: str, options: Mapping[str, str], rule: str = "vlmevalkit-2025-08") -> str | None:
    """The option that an answer names.

    Exactly one option letter among the words, and near the end; else, since 2026, the letter behind "answer is"; else
    exactly one option's text somewhere in an answer that is not much longer than all options; else None.

    Args:
      rule: a key of `RULES`.
    """
    if _API_FAILED not in prediction:  # of such an answer only the text is looked at
        if any(refusal in prediction for refusal in _REFUSALS):
            return None
        spaced = prediction
        for mark in ".()[],:;!*#{}":
            spaced = spaced.replace(mark, " ")
        words = spaced.split()
        named = [letter for letter in options if letter in words]
        if len(named) == 1 and words.index(named[0]) >= len(words) - _LAST_WORDS:
            return named[0]
        if not named and "Z" in words:  # "none of them", in VLMEvalKit's prompt for its judge
            return None
        if rule == "vlmevalkit-2026-06" and (match := _ANSWER_IS.search(prediction)):
            letter = match.group(1).upper()
            if letter in options:
                return letter
    if len(prediction) > 2 * sum(len(text) for text in options.values()):
        return None
    mentioned = [letter for letter, text in options.items() if text.lower() in prediction.lower()]
    return mentioned[0] if len(mentioned) == 1 else None
