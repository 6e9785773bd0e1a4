"""What a guesser reaches who never sees the image: the floor that the digit scenes' accuracies stand on."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from expertflow_jax.tasks.base import Example
from expertflow_jax.tasks.questions import Question
from expertflow_jax.tasks.registry import make_task
from expertflow_jax.tasks.vqa_v2 import VqaV2

BLIND_LETTER = "A"


def question_only_answers(train: Iterable[Question], val: Iterable[Question]) -> list[str]:
    """The commonest training answer to the very question, else to its type, else to any.

    Args:
      train, val: questions of VQA v2's form.
    """
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    anything: Counter[str] = Counter()
    for question in train:
        answer = question.target["answers"][0]
        for counts in (by_question[question.text], by_type[question.groups["question_type"]], anything):
            counts[answer] += 1

    def guess(question: Question) -> str:
        kind = by_type.get(question.groups["question_type"])
        return (by_question.get(question.text) or kind or anything).most_common(1)[0][0]

    return [guess(question) for question in val]


def question_only_choices(train: Sequence[Example], val: Sequence[Example]) -> list[str]:
    """The letter of the option that was most often right among the times training offered it.

    To the very question first, else to its category; the same option in every rotation, so circular evaluation does
    not stop it.

    Args:
      train, val: examples of MMBench's form.
    """
    right: Counter[tuple[str, str]] = Counter()
    offered: Counter[tuple[str, str]] = Counter()
    for example in train:
        options = example.target["options"]
        for asked in (_text(example), example.group):
            right[asked, options[example.target["answer"]]] += 1
            offered.update((asked, option) for option in options.values())

    def share(asked: str, option: str) -> float:
        return right[asked, option] / max(1, offered[asked, option])

    def rank(example: Example, letter: str) -> tuple[float, float, str]:
        option = example.target["options"][letter]
        return share(_text(example), option), share(example.group, option), option

    return [max(e.target["options"], key=lambda letter: rank(e, letter)) for e in val]


def blind_accuracies(data_dir: str | Path) -> dict[str, float]:
    """Official accuracies on val of guessing from the question alone.

    Returns:
      "vqa_v2/question_only", "mmbench/question_only" and "mmbench/letter" (always the same letter), in [0, 1].
    """
    accuracies = {}
    vqa, choice = make_task("vqa_v2", data_dir, "val"), make_task("mmbench", data_dir, "val")
    guesses = question_only_answers(*(VqaV2(Path(data_dir), split).questions() for split in ("train", "val")))
    accuracies["vqa_v2/question_only"] = vqa.aggregate(vqa.examples(), guesses)["accuracy"]
    val = choice.examples()
    letters = question_only_choices(make_task("mmbench", data_dir, "train").examples(), val)
    accuracies["mmbench/question_only"] = choice.aggregate(val, letters)["accuracy"]
    accuracies["mmbench/letter"] = choice.aggregate(val, [BLIND_LETTER] * len(val))["accuracy"]
    return accuracies


def _text(example: Example) -> str:
    """The question without its options, which rotate."""
    text = next(item["text"] for item in example.messages[0]["content"] if item["type"] == "text")
    return text.split("\nOptions:\n")[0]
