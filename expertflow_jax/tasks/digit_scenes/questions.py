"""Questions about a scene: sixteen types, each balanced so that the question alone tells little of the answer.

A type is a function (scene, rng) -> Question, or None where the scene does not suit it. The vocabulary is closed
(`WORDS`), so that the small model's tokenizer needs one token per word.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from expertflow_jax.tasks.digit_scenes.scenes import (
    BLANK,
    CELLS,
    COLOR_NAMES,
    COLUMNS,
    GRID,
    POSITIONS,
    ROWS,
    Scene,
)

EMPTY = "blank"  # how an answer names an empty cell


@dataclasses.dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
      text, answer: as a person would write them.
      type: name of the question type.
      answer_type: "yes/no", "number" or "other", as in VQA v2.
      category: what it asks of the model; the coarse category in MMBench.
      choices: distinct options including the answer, in no particular order; () where choosing makes no sense.
    """

    text: str
    answer: str
    type: str
    answer_type: str
    category: str
    choices: tuple[str, ...] = ()


def _digit(scene: Scene, cell: int) -> str:
    return EMPTY if scene.digits[cell] == BLANK else str(scene.digits[cell])


def _color(scene: Scene, cell: int) -> str:
    return EMPTY if scene.colors[cell] == BLANK else COLOR_NAMES[scene.colors[cell]]


def _pick(rng: np.random.Generator, values: Sequence):
    return values[int(rng.integers(len(values)))]


def _choices(rng: np.random.Generator, answer: str, likely: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    """Four options: the answer, wrong ones that the scene suggests first, then any."""
    wrong = [str(w) for w in rng.permutation(sorted(set(likely) - {answer}))][:2]
    wrong += [str(w) for w in rng.permutation(sorted(set(others) - {answer, *wrong}))]
    return tuple(str(c) for c in rng.permutation([answer, *wrong[:3]]))


def _digit_choices(rng: np.random.Generator, scene: Scene, answer: str) -> tuple[str, ...]:
    return _choices(rng, answer, [str(scene.digits[c]) for c in scene.filled], [str(d) for d in range(10)])


def _color_choices(rng: np.random.Generator, scene: Scene, answer: str) -> tuple[str, ...]:
    return _choices(rng, answer, [_color(scene, c) for c in scene.filled], COLOR_NAMES)


def _count_choices(rng: np.random.Generator, answer: str) -> tuple[str, ...]:
    near = [str(n) for n in range(max(0, int(answer) - 2), min(CELLS, int(answer) + 2) + 1)]
    return _choices(rng, answer, near, [str(n) for n in range(6)])


YES_NO = ("yes", "no")


def digit_at(scene: Scene, rng: np.random.Generator) -> Question | None:
    cell = _pick(rng, scene.filled)
    answer = _digit(scene, cell)
    text = f"What digit is at the {POSITIONS[cell]}?"
    return Question(text, answer, "digit_at", "number", "recognition", _digit_choices(rng, scene, answer))


def color_at(scene: Scene, rng: np.random.Generator) -> Question | None:
    cell = _pick(rng, scene.filled)
    answer = _color(scene, cell)
    text = f"What color is the {POSITIONS[cell]}?"
    return Question(text, answer, "color_at", "other", "recognition", _color_choices(rng, scene, answer))


def color_of(scene: Scene, rng: np.random.Generator) -> Question | None:
    single = [c for c in scene.filled if scene.digits.count(scene.digits[c]) == 1]
    if not single:
        return None
    cell = _pick(rng, single)
    answer = _color(scene, cell)
    text = f"What color is the {scene.digits[cell]}?"
    return Question(text, answer, "color_of", "other", "search", _color_choices(rng, scene, answer))


def count_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    color = _pick(rng, range(len(COLOR_NAMES))) if rng.random() < 0.15 else scene.colors[_pick(rng, scene.filled)]
    answer = str(scene.colors.count(color))
    text = f"How many {COLOR_NAMES[color]} digits are there?"
    return Question(text, answer, "count_color", "number", "counting", _count_choices(rng, answer))


def count_digit(scene: Scene, rng: np.random.Generator) -> Question | None:
    digit = (
        _pick(rng, range(10)) if rng.random() < 0.25 else _pick(rng, sorted({scene.digits[c] for c in scene.filled}))
    )
    answer = str(scene.digits.count(digit))
    text = f"How many digits are {digit}?"
    return Question(text, answer, "count_digit", "number", "counting", _count_choices(rng, answer))


def count_row(scene: Scene, rng: np.random.Generator) -> Question | None:
    row = int(rng.integers(GRID))
    answer = str(sum(scene.digits[c] != BLANK for c in range(row * GRID, (row + 1) * GRID)))
    text = f"How many digits are in the {ROWS[row]} row?"
    return Question(text, answer, "count_row", "number", "counting", _count_choices(rng, answer))


def exists(scene: Scene, rng: np.random.Generator) -> Question | None:
    present = {(scene.colors[c], scene.digits[c]) for c in scene.filled}
    if rng.random() < 0.5:
        color, digit = _pick(rng, sorted(present))
        answer = "yes"
    else:  # a colour and a digit that both occur, but not together
        absent = {(c, d) for c, _ in present for _, d in present} - present
        if not absent:
            return None
        color, digit = _pick(rng, sorted(absent))
        answer = "no"
    text = f"Is there a {COLOR_NAMES[color]} {digit}?"
    return Question(text, answer, "exists", "yes/no", "search", YES_NO)


def largest(scene: Scene, rng: np.random.Generator) -> Question | None:
    answer = str(max(scene.digits[c] for c in scene.filled))
    choices = _digit_choices(rng, scene, answer)
    return Question("What is the largest digit?", answer, "largest", "number", "comparison", choices)


def smallest(scene: Scene, rng: np.random.Generator) -> Question | None:
    answer = str(min(scene.digits[c] for c in scene.filled))
    choices = _digit_choices(rng, scene, answer)
    return Question("What is the smallest digit?", answer, "smallest", "number", "comparison", choices)


NEIGHBOURS = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


def neighbour(scene: Scene, rng: np.random.Generator) -> Question | None:
    name = _pick(rng, tuple(NEIGHBOURS))
    down, right = NEIGHBOURS[name]
    pairs = list(zip(scene.colors, scene.digits, strict=True))
    pairs_of_cells = []
    for cell in scene.filled:
        row, column = cell // GRID + down, cell % GRID + right
        inside = 0 <= row < GRID and 0 <= column < GRID
        if inside and pairs.count(pairs[cell]) == 1 and scene.digits[row * GRID + column] != BLANK:
            pairs_of_cells.append((cell, row * GRID + column))
    if not pairs_of_cells:
        return None
    cell, other = _pick(rng, pairs_of_cells)
    answer = _digit(scene, other)
    text = f"What digit is {name} the {_color(scene, cell)} {scene.digits[cell]}?"
    return Question(text, answer, "neighbour", "number", "relation", _digit_choices(rng, scene, answer))


def _two_filled(scene: Scene, rng: np.random.Generator, keep: Callable[[int, int], bool]) -> tuple[int, int] | None:
    pairs = [(a, b) for a in scene.filled for b in scene.filled if a != b and keep(a, b)]
    return _pick(rng, pairs) if pairs else None


def same_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    answer = _pick(rng, YES_NO)
    pair = _two_filled(scene, rng, lambda a, b: (scene.colors[a] == scene.colors[b]) == (answer == "yes"))
    if pair is None:
        return None
    text = f"Do {POSITIONS[pair[0]]} and {POSITIONS[pair[1]]} have the same color?"
    return Question(text, answer, "same_color", "yes/no", "comparison", YES_NO)


def larger(scene: Scene, rng: np.random.Generator) -> Question | None:
    answer = _pick(rng, YES_NO)
    pair = _two_filled(scene, rng, lambda a, b: (scene.digits[a] > scene.digits[b]) == (answer == "yes"))
    if pair is None:
        return None
    text = f"Is {POSITIONS[pair[0]]} larger than {POSITIONS[pair[1]]}?"
    return Question(text, answer, "larger", "yes/no", "comparison", YES_NO)


def _reading(scene: Scene, cells: Sequence[int], what: Callable[[Scene, int], str]) -> str:
    return " ".join(what(scene, cell) for cell in cells)


def read_row(scene: Scene, rng: np.random.Generator) -> Question | None:
    row = int(rng.integers(GRID))
    answer = _reading(scene, range(row * GRID, (row + 1) * GRID), _digit)
    return Question(f"Read the {ROWS[row]} row.", answer, "read_row", "other", "reading")


def read_column(scene: Scene, rng: np.random.Generator) -> Question | None:
    column = int(rng.integers(GRID))
    answer = _reading(scene, range(column, CELLS, GRID), _digit)
    return Question(f"Read the {COLUMNS[column]} column.", answer, "read_column", "other", "reading")


def row_colors(scene: Scene, rng: np.random.Generator) -> Question | None:
    row = int(rng.integers(GRID))
    answer = _reading(scene, range(row * GRID, (row + 1) * GRID), _color)
    return Question(f"Name the colors of the {ROWS[row]} row.", answer, "row_colors", "other", "reading")


def read_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    color = _pick(rng, sorted({scene.colors[c] for c in scene.filled}))
    cells = [c for c in scene.filled if scene.colors[c] == color]
    if len(cells) > 4:
        return None
    text = f"Read the {COLOR_NAMES[color]} digits."
    return Question(text, _reading(scene, cells, _digit), "read_color", "other", "reading")


SHORT_TYPES = {
    f.__name__: f
    for f in (
        digit_at, color_at, color_of, count_color, count_digit, count_row, exists, largest, smallest, neighbour,
        same_color, larger,
    )
}  # fmt: skip
READING_TYPES = {f.__name__: f for f in (read_row, read_column, row_colors, read_color)}
QUESTION_TYPES = SHORT_TYPES | READING_TYPES
READING_SHARE = 0.35  # of VQA questions: answers of several tokens, so that decoding carries weight


def sample_question(scene: Scene, rng: np.random.Generator, reading_share: float = READING_SHARE) -> Question:
    """A question of a random type that suits the scene."""
    while True:
        types = READING_TYPES if rng.random() < reading_share else SHORT_TYPES
        question = types[_pick(rng, tuple(types))](scene, rng)
        if question is not None:
            return question


def dense_question(scene: Scene, rng: np.random.Generator) -> Question:
    """Asks for all nine cells; for training alone, because it teaches perception nine times per image."""
    if rng.random() < 0.5:
        answer = _reading(scene, range(CELLS), _digit)
        return Question("Read all digits.", answer, "read_all", "other", "reading")
    return Question("Name all colors.", _reading(scene, range(CELLS), _color), "all_colors", "other", "reading")


def matching_question(scene: Scene, rng: np.random.Generator) -> Question:
    """Asks of each of the nine cells whether it matches; for training alone: finding by content, nine times."""
    cell = _pick(rng, scene.filled)
    kind = int(rng.integers(4))
    if kind == 0:
        text, fits = f"Name all {scene.digits[cell]}", [d == scene.digits[cell] for d in scene.digits]
    elif kind == 1:
        color = scene.colors[_pick(rng, scene.filled)]
        text = f"Name all {COLOR_NAMES[color]} {scene.digits[cell]}"
        fits = [d == scene.digits[cell] and c == color for d, c in zip(scene.digits, scene.colors, strict=True)]
    elif kind == 2:
        text = f"Name all larger than {POSITIONS[cell]}"
        fits = [d > scene.digits[cell] for d in scene.digits]  # BLANK is below every digit
    else:
        text = f"Name all same color {POSITIONS[cell]}"
        fits = [c == scene.colors[cell] for c in scene.colors]
    return Question(text, " ".join("yes" if fit else "no" for fit in fits), "matching", "other", "reading")


HARD_TYPES = tuple(
    SHORT_TYPES[name] for name in ("count_digit", "exists", "color_of", "neighbour", "same_color", "larger")
)  # learnt last: they find by content, or compare


def hard_question(scene: Scene, rng: np.random.Generator) -> Question:
    """A question of one of HARD_TYPES that suits the scene."""
    while True:
        question = _pick(rng, HARD_TYPES)(scene, rng)
        if question is not None:
            return question


WORDS = (
    *(str(d) for d in range(10)),
    *COLOR_NAMES,
    *ROWS,
    *COLUMNS,
    *YES_NO,
    EMPTY,
    *[
        "What",
        "How",
        "Is",
        "Do",
        "Read",
        "Name",
        "digit",
        "digits",
        "is",
        "at",
        "the",
        "color",
        "colors",
        "of",
        "many",
        "are",
        "there",
        "in",
        "row",
        "column",
        "a",
        "largest",
    ],
    *["smallest", "left", "right", "above", "below", "and", "have", "same", "larger", "than", "all"],
)
