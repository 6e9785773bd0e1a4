"""The digit scenes' words as a processor; see `tasks.word_processor`."""

from expertflow_jax.tasks.digit_scenes.questions import WORDS
from expertflow_jax.tasks.word_processor import SHORT_ANSWER_PHRASE, WordProcessor

LAST_WORDS = ("row", "column", "digits", "colors")  # of questions that end with a full mark; an option letter's stays
OPTION_LETTERS = ("A", "B", "C", "D")
_MMBENCH_WORDS = ("Question:", "Options:", *(f"{letter}." for letter in OPTION_LETTERS), *OPTION_LETTERS)

PROCESSOR = WordProcessor(
    (*WORDS, *_MMBENCH_WORDS),
    (SHORT_ANSWER_PHRASE, "Please select the correct answer from the options above."),
    LAST_WORDS,
)
